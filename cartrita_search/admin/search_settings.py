"""The one row of thresholds and budgets: no list, no adding, no deleting."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse

from ..models import SearchSettings
from .base import ModelAdmin
from .languages import LanguageSelect


@admin.register(SearchSettings)
class SearchSettingsAdmin(LanguageSelect, ModelAdmin):
    """What the database's own functions read, so that every client searches alike."""

    fieldsets = (
        (
            "Search",
            {
                "fields": (
                    "default_language",
                    "candidate_pool",
                    "keyword_candidate_budget",
                    "keyword_max_terms",
                    "rrf_k",
                )
            },
        ),
        (
            "Vector indexes",
            {
                "description": "These take effect with the next rebuild of an index.",
                "fields": (
                    "exact_scan_max_rows",
                    "index_memory_budget_mb",
                    "hnsw_m",
                    "hnsw_ef_construction",
                    "rebuild_growth",
                    "rebuild_dead_share",
                ),
            },
        ),
    )

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if not self.has_view_or_change_permission(request):
            raise PermissionDenied
        return redirect(reverse("admin:cartrita_search_searchsettings_change", args=[1]))
