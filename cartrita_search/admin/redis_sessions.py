"""The registry of sessions and other entries in Redis."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.utils import timezone

from ..models import RedisSession
from .base import LargeTable, Owned, ReadOnly


@admin.register(RedisSession)
class RedisSessionAdmin(ReadOnly, Owned, LargeTable):
    """Those that live longest first. Keys are not here, only their hashes."""

    list_display = ("__str__", "owner", "is_live", "created_at", "expires_at")
    search_fields = (f"user__{get_user_model().USERNAME_FIELD}",)
    # The time of expiry is indexed, that of creation is not.
    ordering = ("-expires_at",)

    @admin.display(description="live", boolean=True)
    def is_live(self, session: RedisSession) -> bool:
        return session.expires_at > timezone.now()
