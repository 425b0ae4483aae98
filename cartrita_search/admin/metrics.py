"""Searches as they were measured."""

from __future__ import annotations

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path

from ..models import SearchPerformanceMetric
from . import dashboard
from .base import LargeTable, Owned, ReadOnly


@admin.register(SearchPerformanceMetric)
class SearchPerformanceMetricAdmin(ReadOnly, Owned, LargeTable):
    """The latest first. An index on the time serves the filter by date."""

    list_display = (
        "created_at",
        "search_type",
        "owner",
        "embedding_model",
        "query_text",
        "result_count",
        "execution_time_ms",
        "cache_hit",
    )
    list_filter = ("created_at", "search_type", "cache_hit")

    def get_urls(self) -> list[URLPattern]:
        wrap = self.admin_site.admin_view
        return [
            path("dashboard/", wrap(self.dashboard_view), name="cartrita_search_dashboard"),
            path("health/", wrap(self.health_view), name="cartrita_search_health"),
            *super().get_urls(),
        ]

    def dashboard_view(self, request: HttpRequest) -> HttpResponse:
        """How searches, indexes and sessions stand."""
        return dashboard.view(self, request)

    def health_view(self, request: HttpRequest) -> HttpResponse:
        """What takes a while to find out."""
        return dashboard.health_view(self, request)

    @admin.display
    def embedding_model(self, row: SearchPerformanceMetric) -> str | None:
        """None where no vector was used."""
        name: str | None = row.metadata.get("model")
        return name
