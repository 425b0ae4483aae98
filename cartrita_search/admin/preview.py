"""What edited weights would find, beside what the saved ones find, before they are saved."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django import forms
from django.core.cache import cache
from django.core.exceptions import PermissionDenied
from django.db import connection, transaction
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.functional import SimpleLazyObject
from django.utils.safestring import SafeString, mark_safe

from .. import judging, metrics
from ..embedders import get_embedder
from ..errors import SearchError
from ..models import RetrievalConfig, SearchDocument, owner_name
from ..retrieval import Hit, Options, keyword_search, search

#: Results shown of either.
SHOWN = 10
#: Of one member of staff; a slider that is dragged asks a few times a second.
PREVIEWS_PER_MINUTE = 120
#: Nobody has this id: a search as them finds what is shared with everybody.
NOBODY = -1
#: Of a person's own questions, where their text is kept.
RECENT = 10


class PreviewForm(forms.Form):
    """A question, and what is being edited."""

    question = forms.CharField(max_length=judging.MAX_QUESTION)
    vector_weight = forms.FloatField(
        min_value=0, max_value=1, widget=forms.NumberInput(attrs={"step": "any"})
    )
    similarity_threshold = forms.FloatField(
        min_value=0, max_value=1, widget=forms.NumberInput(attrs={"step": "any"})
    )
    rerank_enabled = forms.BooleanField(required=False)


@dataclass(frozen=True, slots=True)
class Row:
    """One result as the page shows it."""

    hit: Hit
    #: Made and escaped by search_snippet().
    snippet: SafeString
    #: Against the other list: "up 2", "down 1", "same", "new", "gone".
    movement: str
    #: Of the bar's 100 units: what meaning and words put into the score.
    vector_part: float
    keyword_part: float
    #: The grade that this was judged with for the question, if it was.
    grade: int | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both lists, and why they hold words alone where they do."""

    saved: list[Row]
    edited: list[Row]
    keyword_only: str = ""


def start(request: HttpRequest, config: RetrievalConfig) -> dict[str, Any]:
    """What the page of a configuration needs to begin a preview."""
    form = PreviewForm(
        initial={
            "vector_weight": config.vector_weight,
            "similarity_threshold": config.similarity_threshold,
            "rerank_enabled": config.rerank_enabled,
        }
    )
    return _common(request, config) | {"preview_form": form}


def view(model_admin: Any, request: HttpRequest, object_id: str) -> HttpResponse:
    """The comparison: a part of the page where a script asks for it, else a page."""
    config = model_admin.get_object(request, object_id)
    if config is None:
        if not model_admin.has_view_permission(request):
            raise PermissionDenied
        missing: HttpResponse = model_admin._get_obj_does_not_exist_redirect(
            request, model_admin.opts, object_id
        )
        return missing
    if not model_admin.has_view_permission(request, config):
        raise PermissionDenied
    context = start(request, config)
    status = 200
    if request.method == "POST":
        form = PreviewForm(request.POST)
        context["preview_form"] = form
        if form.is_valid():
            if _is_within_limit(request):
                _judge(request, config, form.cleaned_data["question"])
                context |= _result(config, form.cleaned_data)
            else:
                status = 429
                context["problem"] = "Too many previews. Wait a minute."
        else:
            status = 400
    name = "admin/cartrita_search/retrievalconfig/"
    if request.headers.get("X-Requested-With") == "fetch":
        return TemplateResponse(request, f"{name}preview_result.html", context, status=status)
    context |= model_admin.admin_site.each_context(request) | {
        "title": f"Preview: {config}",
        "opts": model_admin.opts,
        "original": config,
        "has_change_permission": model_admin.has_change_permission(request, config),
        "media": model_admin.media,
    }
    return TemplateResponse(request, f"{name}preview.html", context, status=status)


def _common(request: HttpRequest, config: RetrievalConfig) -> dict[str, Any]:
    return {
        "preview_url": reverse("admin:cartrita_search_retrievalconfig_preview", args=[config.pk]),
        "person": owner_name(config),
        # Looked for where they are shown: not with each step of a slider.
        "recent": SimpleLazyObject(lambda: _recent(request, config)),
        "can_judge": request.user.has_perm("cartrita_search.add_searchjudgement"),
    }


def _recent(request: HttpRequest, config: RetrievalConfig) -> list[str]:
    """That person's last questions, where their text is kept and this member of staff may
    see it.
    """
    allowed = request.user.has_perm("cartrita_search.view_searchperformancemetric")
    if config.user_id is None or not allowed:
        return []
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT query_text FROM search_performance_metrics
            WHERE user_id = %s AND query_text <> '' AND created_at >= now() - interval '30 days'
            GROUP BY query_text ORDER BY max(id) DESC LIMIT %s
            """,
            [config.user_id, RECENT],
        )
        return [text for (text,) in cursor.fetchall()]


def _is_within_limit(request: HttpRequest) -> bool:
    """Count this preview. Without a cache there is nothing to count by, and no limit."""
    key = f"cartrita_search:previews:{request.user.pk}:{int(time.time() // 60)}"
    cache.add(key, 0, timeout=120)
    try:
        return (cache.incr(key) or 0) <= PREVIEWS_PER_MINUTE
    except ValueError:
        return True


def _judge(request: HttpRequest, config: RetrievalConfig, question: str) -> None:
    """Store what one of the buttons beside a result said: ``judge=<document>:<grade>``."""
    if "judge" not in request.POST:
        return
    if not request.user.has_perm("cartrita_search.add_searchjudgement"):
        raise PermissionDenied
    document_id, _, grade = request.POST["judge"].partition(":")
    try:
        wanted, relevance = UUID(document_id), int(grade)
    except ValueError:
        return
    # Only what that person's searches can find.
    theirs = Q(user=None) | Q(user=config.user_id or NOBODY)
    documents = SearchDocument.objects.filter(theirs, pk=wanted)
    for found in documents.only("source_table", "source_id", "chunk_index"):
        judging.judge(
            question,
            (found.source_table, found.source_id, found.chunk_index),
            1 if relevance > 0 else 0,
            user_id=config.user_id,
            by=request.user.get_username(),
        )


def _result(config: RetrievalConfig, edited: dict[str, Any]) -> dict[str, Any]:
    try:
        with metrics.suspended():
            compared = _compare(config, edited)
    except SearchError as error:
        return {"problem": str(error)}
    return {"comparison": compared, "edited_weight": edited["vector_weight"], "saved": config}


def _compare(config: RetrievalConfig, edited: dict[str, Any]) -> Comparison:
    question: str = edited["question"]
    options: Options = {
        "user": NOBODY if config.user_id is None else config.user_id,
        "limit": SHOWN,
        "explain": True,
        "snippets": True,
        "rerank": False,
    }
    saved: dict[str, Any] = {
        "vector_weight": config.vector_weight,
        "similarity_threshold": config.similarity_threshold,
        "rerank_enabled": config.rerank_enabled,
    }
    keyword_only = ""
    try:
        embedder = get_embedder()
        vector = embedder.embed_query(question)
        options["model"] = embedder.name
        # A savepoint: words are searched for on the same connection if this fails.
        with transaction.atomic():
            before, after = (
                search(
                    question,
                    vector=vector,
                    vector_weight=values["vector_weight"],
                    **options
                    | {
                        "threshold": values["similarity_threshold"],
                        "rerank": values["rerank_enabled"],
                    },
                )
                for values in (saved, edited)
            )
    except SearchError as error:
        # No embedder, a service that is silent, a model without a vector yet: words remain.
        keyword_only = error.message
        options.pop("model", None)
        before = after = keyword_search(question, **options)
    grades = judging.judged(question, config.user_id)
    return Comparison(
        _rows(before, after, grades, is_edited=False),
        _rows(after, before, grades, is_edited=True),
        keyword_only,
    )


def _rows(
    hits: Sequence[Hit],
    others: Sequence[Hit],
    grades: dict[judging.Key, int],
    *,
    is_edited: bool,
) -> list[Row]:
    ranks = {hit.id: rank for rank, hit in enumerate(others)}
    rows = []
    for rank, hit in enumerate(hits):
        other = ranks.get(hit.id)
        if other is None:
            movement = "new" if is_edited else "gone"
        elif not is_edited or other == rank:
            movement = "same" if is_edited else ""
        else:
            movement = f"up {other - rank}" if other > rank else f"down {rank - other}"
        told = hit.explanation
        vector = keyword = 0.0
        if told is not None:
            vector = told.vector_weight * max(0.0, hit.vector_similarity or 0.0)
            keyword = told.keyword_weight * (told.keyword_share or 0.0)
        key = (hit.source_table, hit.source_id, hit.chunk_index)
        rows.append(
            Row(
                hit,
                mark_safe(hit.snippet or ""),  # noqa: S308 - search_snippet() escapes it
                movement,
                round(100 * min(1.0, vector), 1),
                round(100 * min(1.0, keyword), 1),
                grades.get(key),
            )
        )
    return rows
