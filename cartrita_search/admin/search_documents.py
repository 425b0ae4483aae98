"""Documents: the text that is searched, and how fresh its vectors are."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin.widgets import AdminTextInputWidget
from django.core.validators import EMPTY_VALUES
from django.db import connection
from django.db.models import Prefetch, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html_join

from ..models import Embedding, SearchDocument
from . import document_search
from .base import FilledInByDatabase, LargeTable, ModelForm, Owned
from .languages import LanguageSelect


class SourceFilter(admin.SimpleListFilter):
    """By source table."""

    title = "source table"
    parameter_name = "source_table"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        # From one source to the next through the unique index, a step each:
        # DISTINCT would read an entry for every document.
        with connection.cursor() as cursor:
            cursor.execute(
                """
                WITH RECURSIVE sources (name) AS (
                    SELECT min(source_table) FROM search_documents
                    UNION ALL
                    SELECT (
                        SELECT min(d.source_table) FROM search_documents AS d
                        WHERE d.source_table > s.name
                    )
                    FROM sources AS s WHERE s.name IS NOT NULL
                )
                SELECT name FROM sources WHERE name IS NOT NULL
                """
            )
            return [(name, name) for (name,) in cursor.fetchall()]

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[SearchDocument]
    ) -> QuerySet[SearchDocument]:
        return queryset.filter(source_table=self.value()) if self.value() else queryset


class SearchDocumentForm(ModelForm):
    """The text, its language and what is known about it."""

    class Meta:
        widgets = {  # noqa: RUF012 - as Django declares it
            "source_table": AdminTextInputWidget,
            "source_id": AdminTextInputWidget,
            "title": AdminTextInputWidget,
        }

    def clean_metadata(self) -> Any:
        # Django checks no empty value of a field that may be blank, yet the
        # column holds objects only.
        metadata = self.cleaned_data["metadata"]
        return {} if metadata in EMPTY_VALUES else metadata


@admin.register(SearchDocument)
class SearchDocumentAdmin(LanguageSelect, FilledInByDatabase, Owned, LargeTable):
    """The database's triggers keep hash, keyword index and the vectors' copies in step."""

    form = SearchDocumentForm
    list_display = (
        "__str__",
        "source_table",
        "source_id",
        "chunk_index",
        "owner",
        "freshness",
        "updated_at",
    )
    list_filter = (SourceFilter,)
    # What is in them is found by `get_search_results`.
    search_fields = ("title",)
    search_help_text = (
        "By meaning and by words, best first, among the documents of everybody; or one by its "
        "source, like books/42."
    )
    # The unique index has this order.
    ordering = ("source_table", "source_id", "chunk_index")
    autocomplete_fields = ("user",)
    readonly_fields = ("content_hash", "created_at", "updated_at", "vectors")
    fieldsets = (
        (None, {"fields": (("source_table", "source_id", "chunk_index"), "user")}),
        (
            "Text",
            {
                "description": "A new or changed text is found by its words at once, and by its "
                "meaning when it has been embedded.",
                "fields": ("title", "content", "language"),
            },
        ),
        (None, {"fields": ("tags", "metadata")}),
        ("State", {"fields": ("vectors", "content_hash", ("created_at", "updated_at"))}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[SearchDocument]:
        # Large, shown nowhere, and left to the trigger on save.
        rows = super().get_queryset(request).defer("search_vector", "keyword_vector")
        hashes = Embedding.objects.only("document", "embedding_model", "content_hash")
        return rows.prefetch_related(
            Prefetch("embeddings", hashes.order_by("embedding_model_id"), to_attr="hashes")
        )

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.similar_view)
        name = "cartrita_search_searchdocument_similar"
        return [path("<path:object_id>/similar/", view, name=name), *super().get_urls()]

    def similar_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """The documents nearest to one."""
        return document_search.similar_view(self, request, object_id)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[SearchDocument], search_term: str
    ) -> tuple[QuerySet[SearchDocument], bool]:
        if not search_term.strip():
            return queryset, False
        source = request.GET.get(SourceFilter.parameter_name)
        return document_search.found(request, queryset, search_term, source), False

    def get_readonly_fields(
        self, request: HttpRequest, obj: SearchDocument | None = None
    ) -> list[str] | tuple[str, ...]:
        fields = super().get_readonly_fields(request, obj)
        # The key of a document is what its source's next upsert finds it by.
        return ["source_table", "source_id", "chunk_index", *fields] if obj else fields

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[str], dict[str, int], set[str], list[str]]:
        # The database deletes the vectors, unseen by Django; the page tells it.
        to_delete, counts, missing, protected = super().get_deleted_objects(objs, request)
        counts["embeddings"] = Embedding.objects.filter(document__in=objs).count()
        return to_delete, counts, missing, protected

    @admin.display(description="vectors")
    def freshness(self, document: Any) -> str:
        """Whether every vector there is is of the present text."""
        stale = [
            vector.embedding_model_id
            for vector in document.hashes
            if vector.content_hash != document.content_hash
        ]
        if stale:
            return f"of an older text: {', '.join(stale)}"
        return "up to date" if document.hashes else "none yet"

    @admin.display(description="vectors")
    def vectors(self, document: SearchDocument) -> str:
        """Each vector of the document, and whether it is of the present text."""
        found = document.embeddings.order_by("embedding_model").values_list(
            "pk", "embedding_model", "content_hash"
        )
        vectors = [
            (
                reverse("admin:cartrita_search_embedding_change", args=[pk]),
                model,
                "up to date" if content_hash == document.content_hash else "of an older text",
            )
            for pk, model, content_hash in found
        ]
        return format_html_join(", ", '<a href="{}">{}</a> ({})', vectors) or "none yet"
