"""What was applied to this database, and when."""

from __future__ import annotations

from django.contrib import admin

from ..models import SchemaMigration
from .base import ModelAdmin, ReadOnly


@admin.register(SchemaMigration)
class SchemaMigrationAdmin(ReadOnly, ModelAdmin):
    """The latest first."""

    list_display = ("version", "applied_at", "description", "migration_type")
    list_filter = ("migration_type",)
    ordering = ("-applied_at",)
