"""Searches as they were measured."""

from __future__ import annotations

from django.contrib import admin

from ..models import SearchPerformanceMetric
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

    @admin.display
    def embedding_model(self, row: SearchPerformanceMetric) -> str | None:
        """None where no vector was used."""
        name: str | None = row.metadata.get("model")
        return name
