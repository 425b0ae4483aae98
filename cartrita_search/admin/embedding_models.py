"""Embedding models: which is the default, what index each has and should have."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db import connection
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat

from ..models import EmbeddingModel
from ..ops.embedding_models import make_default
from ..ops.vector_indexes import status as index_status
from ..ops.vector_indexes import statuses
from .base import ModelAdmin
from .dashboard import badge_html


class WithStatus(ChangeList):
    """The models of a page with how their indexes stand."""

    result_list: Any

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        found = {status.model: status for status in statuses()}
        self.result_list = list(self.result_list)
        for model in self.result_list:
            model.status = found[model.pk]


@admin.register(EmbeddingModel)
class EmbeddingModelAdmin(ModelAdmin):
    """A model is registered by its first vector, and its index recorded by a rebuild.

    Neither is for hands: what is left to edit is the default, the target, and what
    the next index stores. Deleting one means deleting its vectors first, which is the
    work of ``manage.py embedding_models drop``.
    """

    list_display = (
        "name",
        "dimensions",
        "is_default",
        "state",
        "index_method",
        "index_storage",
        "indexed_rows",
        "measured_recall",
        "target_recall",
        "indexed_at",
    )
    fieldsets = (
        (None, {"fields": ("name", "dimensions", "is_default", "created_at")}),
        (
            "Index in place",
            {
                "fields": (
                    ("index_method", "index_storage"),
                    ("hnsw_m", "hnsw_ef_construction", "ef_search"),
                    ("ivfflat_lists", "probes"),
                    ("indexed_rows", "indexed_at", "indexed_by"),
                    "in_place",
                )
            },
        ),
        ("Recall@10", {"fields": (("target_recall", "measured_recall"),)}),
        ("Next index", {"fields": ("preferred_storage", "plan")}),
    )

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return WithStatus

    @admin.display(description="state")
    def state(self, model: Any) -> str:
        """Whether the index is in order."""
        return badge_html(model.status)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_readonly_fields(
        self, request: HttpRequest, obj: EmbeddingModel | None = None
    ) -> list[str]:
        # The default is changed by choosing another, so that there always is one.
        editable = {"target_recall", "preferred_storage"}
        if not (obj and obj.is_default):
            editable.add("is_default")
        fields = [field.name for field in EmbeddingModel._meta.concrete_fields]
        return [name for name in fields if name not in editable] + ["plan", "in_place"]

    def save_model(
        self, request: HttpRequest, obj: EmbeddingModel, form: Any, change: bool
    ) -> None:
        # The admin's view holds the transaction that makes this one step.
        if "is_default" in form.changed_data:
            make_default(obj.pk)
        # Nothing else: a rebuild may have recorded its figures since the page was read.
        obj.save(update_fields=form.changed_data)

    @admin.display(description="in the database")
    def in_place(self, model: EmbeddingModel) -> str:
        """What the catalog says of the index, and why it should be rebuilt."""
        status = index_status(model.pk)
        due = " ".join(status.needs) or "No reason to rebuild it."
        if status.index_method == EmbeddingModel.IndexMethod.EXACT:
            return f"No index; {status.row_count:,} vectors. {due}"
        return (
            f"{status.index_name}: {status.index_method} on {status.index_storage}"
            f" ({status.parameters}), {'valid' if status.is_valid else 'INVALID'},"
            f" {filesizeformat(status.size_bytes or 0)}; {status.row_count:,} vectors,"
            f" {status.rows_since_build or 0:+,} since it was built. {due}"
        )

    @admin.display(description="plan")
    def plan(self, model: EmbeddingModel) -> str:
        """What ``vector_index_plan`` would build now, and its reason."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT method, storage, row_count, reason FROM vector_index_plan(%s)", [model.pk]
            )
            method, storage, rows, reason = cursor.fetchone()
        index = EmbeddingModel.IndexMethod(method).label
        if method != EmbeddingModel.IndexMethod.EXACT:
            index += f" on {EmbeddingModel.IndexStorage(storage).label}"
        return f"{index}, for {rows:,} vectors. {reason}"
