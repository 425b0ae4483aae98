"""Documents found by hybrid search, and those that are like one of them."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import models, transaction
from django.db.models import Case, QuerySet, Value, When
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from .. import metrics
from ..errors import SearchError
from ..models import Embedding, SearchDocument
from ..retrieval import Hit, keyword_search, search, similarity_search

#: The best of a search; a list of more than that nobody leafs through.
FOUND = 100
SIMILAR = 10


def found(
    request: HttpRequest, queryset: QuerySet[SearchDocument], text: str, source: str | None
) -> QuerySet[SearchDocument]:
    """Those of `queryset` that answer the text, best first; one named exactly before all.

    By words alone where nothing can be embedded, which the page then says. Nobody's
    search is recorded: staff are no users.
    """
    ids = [hit.id for hit in _hits(request, text, source)]
    table, _, key = text.strip().partition("/")
    named = SearchDocument.objects.filter(source_table=table, source_id=key)
    ids = [*named.order_by("chunk_index").values_list("pk", flat=True)[:FOUND], *ids]
    order = Case(
        *(When(pk=pk, then=Value(rank)) for rank, pk in enumerate(dict.fromkeys(ids))),
        output_field=models.IntegerField(),
    )
    return queryset.filter(pk__in=ids).order_by(order)


def _hits(request: HttpRequest, text: str, source: str | None) -> list[Hit]:
    with metrics.suspended():
        try:
            with transaction.atomic():
                return search(text, source=source, limit=FOUND)
        except SearchError as error:
            messages.info(request, f"By words alone: {error.message}")
        try:
            return keyword_search(text, source=source, limit=FOUND)
        except SearchError as error:
            messages.error(request, str(error))
            return []


def similar_view(model_admin: Any, request: HttpRequest, object_id: str) -> HttpResponse:
    """The documents whose vectors are nearest to that of one document."""
    if not model_admin.has_view_permission(request):
        raise PermissionDenied
    document = model_admin.get_object(request, object_id)
    if document is None:
        missing: HttpResponse = model_admin._get_obj_does_not_exist_redirect(
            request, model_admin.opts, object_id
        )
        return missing
    vector = (
        Embedding.objects.filter(document=document)
        .order_by("-embedding_model__is_default", "embedding_model")
        .first()
    )
    hits: list[Hit] = []
    if vector is not None:
        with metrics.suspended():
            nearest = similarity_search(
                vector.embedding.tolist()
                if hasattr(vector.embedding, "tolist")
                else vector.embedding,
                model=vector.embedding_model_id,
                limit=SIMILAR + 1,
            )
        hits = [hit for hit in nearest if hit.id != document.pk][:SIMILAR]
    context = model_admin.admin_site.each_context(request) | {
        "title": f"Similar to {document}",
        "opts": model_admin.opts,
        "original": document,
        "media": model_admin.media,
        "vector": vector,
        "hits": hits,
    }
    page = "admin/cartrita_search/searchdocument/similar.html"
    return TemplateResponse(request, page, context)
