"""Search weights and options: everybody's, and the site's default."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.admin.widgets import AdminTextInputWidget
from django.contrib.auth import get_user_model
from django.db import models
from django.db.models import F, Model

from ..models import RetrievalConfig
from .base import FilledInByDatabase, Owned

USERNAME = f"user__{get_user_model().USERNAME_FIELD}"


@admin.register(RetrievalConfig)
class RetrievalConfigAdmin(FilledInByDatabase, Owned):
    """One row a person is active, and one for the site."""

    list_display = (
        "owner",
        "config_name",
        "vector_weight",
        "keyword_weight",
        "max_results",
        "is_active",
        "updated_at",
    )
    list_filter = ("is_active", ("user", admin.EmptyFieldListFilter), "rerank_enabled")
    search_fields = (USERNAME, "config_name")
    # The site's own first.
    ordering = (F(USERNAME).asc(nulls_first=True), "-is_active", "id")
    autocomplete_fields = ("user",)
    readonly_fields = ("created_at", "updated_at")
    fieldsets = (
        (None, {"fields": ("user", "config_name", "is_active")}),
        ("Weights", {"fields": (("vector_weight", "keyword_weight"),)}),
        ("Results", {"fields": ("max_results", "similarity_threshold", "rerank_enabled")}),
        (None, {"fields": (("created_at", "updated_at"),)}),
    )
    formfield_overrides = {  # noqa: RUF012 - as Django declares it
        # The browser refuses too, before anything is sent.
        models.FloatField: {"min_value": 0, "max_value": 1},
        models.TextField: {"widget": AdminTextInputWidget},
    }

    @admin.display(description="person", ordering=USERNAME, empty_value="site default")
    def owner(self, row: Model) -> str | None:
        return super().owner(row)
