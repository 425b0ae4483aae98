"""The registry of sessions and other entries in Redis, and their revocation."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth import get_user_model
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone

from ..models import RedisSession, owner_name
from ..ops.actions import record_action
from ..sessions import revoke_entries
from .base import LargeTable, Owned, ReadOnly, selection


class Liveness(admin.SimpleListFilter):
    """Live ones, or those that were revoked and have not expired."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("live", "Live"), ("revoked", "Revoked"), ("expired", "Expired")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        now = timezone.now()
        if self.value() == "live":
            return queryset.filter(expires_at__gt=now, revoked_at=None)
        if self.value() == "revoked":
            return queryset.filter(expires_at__gt=now, revoked_at__isnull=False)
        return queryset.filter(expires_at__lte=now) if self.value() == "expired" else queryset


@admin.register(RedisSession)
class RedisSessionAdmin(ReadOnly, Owned, LargeTable):
    """Those that live longest first. Keys are not here, only their hashes.

    Who has the permission ``revoke_redissession`` may end what is listed; it takes a
    second, after which no process takes it for live.
    """

    list_display = (
        "__str__",
        "owner",
        "is_live",
        "ip",
        "user_agent",
        "created_at",
        "expires_at",
        "revoked_at",
    )
    list_filter = (Liveness, "data_type")
    search_fields = (
        f"user__{get_user_model().USERNAME_FIELD}",
        "session_key_hash__startswith",
        "metadata__ip",
        "metadata__user_agent",
    )
    search_help_text = "By person, beginning of the hash, IP address or user agent."
    # The time of expiry is indexed, that of creation is not.
    ordering = ("-expires_at",)
    actions = ("revoke_selected", "revoke_all_of_the_person")

    @admin.display(description="live", boolean=True)
    def is_live(self, session: RedisSession) -> bool:
        return session.revoked_at is None and session.expires_at > timezone.now()

    @admin.display(description="IP address")
    def ip(self, session: RedisSession) -> Any:
        return session.metadata.get("ip")

    @admin.display(description="user agent")
    def user_agent(self, session: RedisSession) -> Any:
        return session.metadata.get("user_agent")

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("cartrita_search.revoke_redissession")

    # A revocation is a transaction of its own, also where requests are transactions.
    @transaction.non_atomic_requests
    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        return super().changelist_view(request, extra_context)

    @admin.action(description="Revoke the selected ones", permissions=["revoke"])
    def revoke_selected(
        self, request: HttpRequest, queryset: QuerySet[RedisSession]
    ) -> HttpResponse | None:
        return self._revoke(request, queryset, queryset)

    @admin.action(
        description="Revoke everything of the people they belong to", permissions=["revoke"]
    )
    def revoke_all_of_the_person(
        self, request: HttpRequest, queryset: QuerySet[RedisSession]
    ) -> HttpResponse | None:
        people = queryset.order_by().values("user_id")
        # Nobody's: NULL is in no list.
        return self._revoke(request, queryset, RedisSession.objects.filter(user_id__in=people))

    def _revoke(
        self,
        request: HttpRequest,
        selected: QuerySet[RedisSession],
        wanted: QuerySet[RedisSession],
    ) -> HttpResponse | None:
        """Ask, and on the second time do it and write it down, here and for operators."""
        live = list(
            wanted.filter(revoked_at=None, expires_at__gt=timezone.now()).select_related("user")
        )
        people = sorted({owner_name(entry) or "nobody in particular" for entry in live})
        if live and request.POST.get("confirmed") != "yes":
            context = self.admin_site.each_context(request) | {
                "title": "Revoke: are you sure?",
                "opts": self.opts,
                "entries": live[:100],
                "more": max(0, len(live) - 100),
                "people": people,
                "action": request.POST["action"],
            }
            context |= selection(request, selected)
            return TemplateResponse(
                request, "admin/cartrita_search/redissession/revoke.html", context
            )
        entries = RedisSession.objects.filter(pk__in=[entry.pk for entry in live])
        revoked = revoke_entries(entries) if live else 0
        if revoked:
            LogEntry.objects.log_actions(str(request.user.pk), entries, CHANGE, "Revoked.")
            record_action(
                "revoke",
                ", ".join(people),
                details={"entries": revoked, "by": request.user.get_username()},
            )
        self.message_user(request, f"Revoked: {revoked}.", messages.SUCCESS)
        return None
