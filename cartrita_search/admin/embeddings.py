"""The vectors, shortened: a page of a thousand numbers tells nobody anything."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from ..models import Embedding
from .base import LargeTable, Owned, ReadOnly

#: Components that tell two vectors apart at a glance.
SHOWN_COMPONENTS = 6


@admin.register(Embedding)
class EmbeddingAdmin(ReadOnly, Owned, LargeTable):
    """Written by upserts alone: a vector comes from a model, not from a form."""

    list_display = ("__str__", "owner", "dimensions", "updated_at")
    list_filter = ("embedding_model",)
    readonly_fields = ("vector",)
    fields = (
        "document",
        "user",
        "embedding_model",
        "vector",
        "content_hash",
        "metadata",
        ("created_at", "updated_at"),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Embedding]:
        # A list shows none of them, and fifty are half a megabyte.
        rows = super().get_queryset(request)
        return rows.select_related("embedding_model").defer("embedding")

    @admin.display(description="dimensions")
    def dimensions(self, embedding: Embedding) -> int:
        return embedding.embedding_model.dimensions

    @admin.display(description="vector")
    def vector(self, embedding: Embedding) -> str:
        """The dimension and the first components."""
        values = embedding.embedding
        shown = ", ".join(f"{value:.4g}" for value in values[:SHOWN_COMPONENTS])
        rest = ", …" if len(values) > SHOWN_COMPONENTS else ""
        return f"{len(values)} dimensions: [{shown}{rest}]"
