"""Documents whose text a provider would not embed."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.auth import get_permission_codename
from django.db.models import QuerySet
from django.http import HttpRequest

from ..models import EmbeddingRefusal
from .base import LargeTable, ReadOnly


@admin.register(EmbeddingRefusal)
class EmbeddingRefusalAdmin(ReadOnly, LargeTable):
    """The latest first. Embedding one again means forgetting that it was refused."""

    list_display = (
        "document",
        "embedding_model",
        "error_code",
        "message",
        "is_current",
        "refused_at",
    )
    list_filter = ("embedding_model",)
    fields = (
        "document",
        "embedding_model",
        "error_code",
        "message",
        "content_hash",
        ("worker", "refused_at"),
    )
    actions = ("embed_again",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[EmbeddingRefusal]:
        rows = super().get_queryset(request).select_related("document", "embedding_model")
        return rows.defer(
            "document__content", "document__search_vector", "document__keyword_vector"
        )

    def has_forget_permission(self, request: HttpRequest) -> bool:
        """The permission to delete these rows, which their own page denies to everybody."""
        codename = get_permission_codename("delete", self.opts)
        return request.user.has_perm(f"{self.opts.app_label}.{codename}")

    @admin.action(description="Embed the selected documents again", permissions=["forget"])
    def embed_again(self, request: HttpRequest, queryset: QuerySet[EmbeddingRefusal]) -> None:
        """Delete the rows, so that the next ``sync_embeddings`` takes the documents up."""
        count, _ = queryset.delete()
        self.message_user(request, f"The next sync_embeddings will try {count} again.")

    @admin.display(description="holds", boolean=True)
    def is_current(self, refusal: EmbeddingRefusal) -> bool:
        """Whether the refused text is still the document's: otherwise it is tried again."""
        return refusal.content_hash == refusal.document.content_hash
