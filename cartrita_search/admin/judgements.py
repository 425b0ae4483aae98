"""What staff judged relevant or not."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from ..models import SearchJudgement
from .base import LargeTable, Owned


@admin.register(SearchJudgement)
class SearchJudgementAdmin(Owned, LargeTable):
    """Made beside the results of a preview; here they are looked at and deleted."""

    list_display = ("query_text", "owner", "source_table", "source_id", "grade", "judged_by")
    list_filter = ("grade", "source_table")
    search_fields = ("query_text", "source_id")
    fields = (
        "user",
        "query_text",
        ("source_table", "source_id", "chunk_index"),
        "grade",
        ("judged_by", "judged_at"),
    )

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
