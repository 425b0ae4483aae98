"""What was thrown out of the cache, and why."""

from __future__ import annotations

from django.contrib import admin

from ..models import CacheInvalidation
from .base import LargeTable, ReadOnly


@admin.register(CacheInvalidation)
class CacheInvalidationAdmin(ReadOnly, LargeTable):
    """The latest first. A block range index on the time serves the filter by date."""

    list_display = (
        "created_at",
        "cache_namespace",
        "cache_key",
        "invalidation_reason",
        "invalidated_by",
    )
    list_filter = ("created_at",)
