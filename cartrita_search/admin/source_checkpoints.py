"""The unfinished runs of ``sync_documents``."""

from __future__ import annotations

from django.contrib import admin

from ..models import SourceCheckpoint
from .base import ModelAdmin, ReadOnly


@admin.register(SourceCheckpoint)
class SourceCheckpointAdmin(ReadOnly, ModelAdmin):
    """A row that does not move is a run that was killed: the next one goes on from it."""

    list_display = ("source_table", "rows", "last_key", "started_at", "updated_at")
