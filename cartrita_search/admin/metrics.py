"""Searches as they were measured."""

from __future__ import annotations

from django.contrib import admin

from ..models import SearchPerformanceMetric
from .base import LargeTable, Owned, ReadOnly


@admin.register(SearchPerformanceMetric)
class SearchPerformanceMetricAdmin(ReadOnly, Owned, LargeTable):
    """The latest first. A block range index on the time serves the filter by date."""

    list_display = (
        "created_at",
        "search_type",
        "owner",
        "query_text",
        "result_count",
        "execution_time_ms",
        "cache_hit",
    )
    list_filter = ("created_at", "search_type", "cache_hit")
