"""Search from Python: typed hits over the SQL functions, sync and async.

The ranking itself is in ``sql/retrieval/``; here text becomes a vector, a person
an id, and a row a `Hit`. Every function takes the keyword arguments of
`Options` and raises a `SearchError` for what cannot be searched; nothing is ever
written to the searched tables. An answer may come from the cache, and is then none the
older: see `cache`.

A search without ``user`` is not restricted to anybody's documents: it is for
trusted code. Pass ``user`` whenever a person sees the result.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, Unpack, cast
from uuid import UUID

from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.utils.timezone import is_naive, make_aware

from . import cache, metrics, prepared, replicas
from .conf import search_settings
from .db import binary_cursor, vector_argument, vector_binary
from .embedders import get_embedder
from .errors import InvalidArgument, NothingToSearchFor, search_errors
from .models import SearchDocument
from .rerank import Candidate, RerankQuery, candidate_vectors, get_reranker

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser

#: Results of a search that says nothing of their number, for anybody without a configuration.
DEFAULT_LIMIT = 10


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a hybrid score is made of: see the formula in ``hybrid_search``.

    Ranks count from 1 within a leg; None where that leg did not propose the document.
    """

    vector_rank: int | None
    keyword_rank: int | None
    #: BM25 over the largest of the result's candidates, in [0, 1].
    keyword_share: float | None
    #: The weights that counted: a leg without input leaves all to the other.
    vector_weight: float
    keyword_weight: float


@dataclass(frozen=True, slots=True)
class Hit:
    """One document found, best first in a list of them.

    ``vector_similarity`` is the cosine in [-1, 1], None where the document has no
    vector under the model or the query has none. ``keyword_score`` is BM25, from
    0 up, None where the query has no words. ``hybrid_score`` is what the list is
    ordered by, unless it was re-ranked: then ``rerank_score`` is.
    """

    id: UUID
    source_table: str
    source_id: str
    chunk_index: int
    title: str
    content: str
    metadata: dict[str, Any]
    hybrid_score: float
    vector_similarity: float | None
    keyword_score: float | None
    #: The leg that proposed it: 'vector', 'keyword', or 'hybrid' for both.
    matched_by: str
    #: With ``explain``.
    explanation: Explanation | None = None
    #: With ``snippets``: HTML, escaped, the query's words in <mark>.
    snippet: str | None = None
    #: Where a reranker has looked at it.
    rerank_score: float | None = None


class Options(TypedDict, total=False):
    """What every search accepts; each may be left out."""

    #: A user or a user's id: that person's documents and shared ones, with the
    #: weights, threshold, number of results and re-ranking of their RetrievalConfig.
    user: AbstractBaseUser | int | None
    #: Number of results, 1 to 10,000; default 10, or the person's ``max_results``.
    limit: int | None
    #: Results to pass over; pages of one search fit together without gap or repeat.
    offset: int
    #: Cosine, -1 to 1, below which the vector leg proposes nothing.
    threshold: float | None
    #: Only documents of this ``source_table``, or of one of these.
    source: str | Sequence[str] | None
    #: Only documents whose metadata contains this object.
    metadata: dict[str, Any] | None
    #: Only documents that have every one of these tags.
    tags: Sequence[str] | None
    #: Only documents stored later than this; naive times are in the current time zone.
    created_after: datetime | None
    #: Embedding model; default the embedder's, or for a given vector the
    #: database's default model.
    model: str | None
    #: Text search configuration of the query; default that of `SearchSettings`.
    language: str | None
    #: Whether each hit carries its `Explanation`. Not for `similarity_search`.
    explain: bool
    #: Whether each hit carries the part of its text that speaks of the query.
    snippets: bool
    #: Whether the best candidates are re-scored by the configured reranker; default
    #: what the person's RetrievalConfig says, and no without a person.
    rerank: bool | None
    #: Database alias; default what the router says, which may be a replica.
    using: str | None


def search(
    text: str | None,
    *,
    vector: Sequence[float] | None = None,
    vector_weight: float | None = None,
    keyword_weight: float | None = None,
    fusion: str = "weighted",
    **options: Unpack[Options],
) -> list[Hit]:
    """The best documents by meaning and by words together.

    The text is embedded by the configured embedder unless `vector` is given.
    Weights are in [0, 1] and sum to 1; one alone implies the other. They override
    those of the person's configuration. `fusion` is 'weighted' or 'rrf'; both
    formulas are in ``sql/retrieval/hybrid_search.v2.sql``.

    Raises a `SearchError`: among them `EmbedderUnavailable` when text has to be
    embedded and nothing is configured for it (`keyword_search` needs none).
    """
    if text is None and vector is None:
        raise NothingToSearchFor(
            "There is nothing to search for: neither text nor a vector.", "Give either."
        )
    weights = _both_weights(vector_weight, keyword_weight)
    return _run(_Query("hybrid", text, vector, weights, fusion), options)


def keyword_search(text: str, **options: Unpack[Options]) -> list[Hit]:
    """The best documents by words alone: BM25, no embedder needed."""
    return _run(_Query("keyword", text), options)


def similarity_search(query: str | Sequence[float], **options: Unpack[Options]) -> list[Hit]:
    """The nearest documents by meaning alone: text, or a vector of the model's dimension.

    `Hit.hybrid_score` is the cosine similarity here.
    """
    if isinstance(query, str):
        return _run(_Query("vector", query), options)
    return _run(_Query("vector", None, query), options)


async def asearch(
    text: str | None,
    *,
    vector: Sequence[float] | None = None,
    vector_weight: float | None = None,
    keyword_weight: float | None = None,
    fusion: str = "weighted",
    **options: Unpack[Options],
) -> list[Hit]:
    """`search`, in a thread: the event loop goes on while PostgreSQL works."""
    return await sync_to_async(search)(
        text,
        vector=vector,
        vector_weight=vector_weight,
        keyword_weight=keyword_weight,
        fusion=fusion,
        **options,
    )


async def akeyword_search(text: str, **options: Unpack[Options]) -> list[Hit]:
    """`keyword_search`, in a thread."""
    return await sync_to_async(keyword_search)(text, **options)


async def asimilarity_search(
    query: str | Sequence[float], **options: Unpack[Options]
) -> list[Hit]:
    """`similarity_search`, in a thread."""
    return await sync_to_async(similarity_search)(query, **options)


class _Query(NamedTuple):
    """What is searched for, apart from `Options`."""

    kind: Literal["vector", "keyword", "hybrid"]
    text: str | None
    vector: Sequence[float] | None = None
    weights: tuple[float | None, float | None] = (None, None)
    fusion: str = "weighted"

    @property
    def to_embed(self) -> str | None:
        """The text that has to become a vector first."""
        if self.vector is not None or self.text is None or self.kind == "keyword":
            return None
        # Of a blank text a hybrid search needs no vector: it finds nothing by words either.
        return self.text if self.text.strip() or self.kind == "vector" else None


class _Answer(NamedTuple):
    """What a search found, and the model of the vectors that it compared."""

    model: str | None
    hits: list[Hit]


def _run(query: _Query, options: Options) -> list[Hit]:
    """Search, re-rank if asked to, cut out the page, and leave a row in the metrics."""
    started = time.perf_counter()
    # One that is misspelt would not restrict the search.
    for name in options.keys() - Options.__optional_keys__:
        raise InvalidArgument(
            f"A search has no option {name!r}.",
            f"There are: {', '.join(sorted(Options.__optional_keys__))}.",
        )
    user = _user_id(options)
    details: dict[str, float] = {}
    if query.text is not None:
        query = query._replace(text=_normal(query.text))

    def embed() -> None:
        nonlocal query
        if (text := query.to_embed) is not None:
            began = time.perf_counter()
            vector, options["model"] = _embed(text, options.get("model"))
            query = query._replace(vector=vector)
            details["embed_ms"] = _milliseconds(began)

    def found() -> _Answer:
        hits = _page(query, options, user, details)
        if options.get("snippets") and query.text is not None:
            hits = _with_snippets(query.text, hits, options)
        return _Answer(options.get("model"), hits)

    def search_at(alias: str) -> tuple[_Answer, bool]:
        options["using"] = alias
        return cache.answer(partial(_request, query, options, user), embed, found)

    alias = options.get("using") or router.db_for_read(SearchDocument, search=True)
    answer, cached = replicas.read(alias, search_at)
    failure = None if cached else cache.redis_failure()
    metrics.record(
        metrics.SearchMetric(
            query.kind,
            len(answer.hits),
            _milliseconds(started),
            user_id=user,
            model=answer.model,
            query_text=query.text,
            cache_hit=cached,
            details=details if failure is None else {**details, "redis_failure": failure},
        )
    )
    return answer.hits


def _request(query: _Query, options: Options, user: int | None) -> cache.Request[_Answer]:
    """All that decides the answer, apart from the database's contents."""
    settings = search_settings()
    metadata, sources = _metadata(options), _sources(options)
    created_after = _aware(options.get("created_after"))
    question = [
        query.kind,
        query.text,
        None if query.vector is None else vector_binary(query.vector),
        *query.weights,
        query.fusion,
        user,
        sources,  # None restricts nothing, and an empty list admits nothing
        metadata,
        _tags(options),
        None if created_after is None else created_after.isoformat(),
        # Whose vector, and whose order.
        [settings.embedder, repr(sorted(settings.embedder_options.items()))],
        [settings.reranker, repr(sorted(settings.reranker_options.items()))],
        settings.rerank_depth,
        *(options.get(name) for name in _PLAIN_OPTIONS),
    ]
    return cache.Request(question, user, sources or [], _alias(options), _dump, _load)


_PLAIN_OPTIONS: tuple[
    Literal["limit", "offset", "threshold", "model", "language", "explain", "snippets", "rerank"],
    ...,
] = ("limit", "offset", "threshold", "model", "language", "explain", "snippets", "rerank")


def _dump(answer: _Answer) -> list[Any]:
    """An answer as plain values, for the cache."""
    rows = [
        [
            hit.id.bytes,
            *(getattr(hit, field.name) for field in fields(hit)[1:_HIT_COLUMNS]),
            None if hit.explanation is None else astuple(hit.explanation),
            hit.snippet,
            hit.rerank_score,
        ]
        for hit in answer.hits
    ]
    return [answer.model, rows]


def _load(values: Sequence[Any]) -> _Answer:
    model, rows = values
    return _Answer(model, [_loaded_hit(*row) for row in rows])


def _loaded_hit(document: bytes, *columns: Any) -> Hit:
    *found, explanation, snippet, rerank_score = columns
    return replace(
        Hit(UUID(bytes=document), *found),
        explanation=None if explanation is None else Explanation(*explanation),
        snippet=snippet,
        rerank_score=rerank_score,
    )


def _page(
    query: _Query, options: Options, user: int | None, details: dict[str, float]
) -> list[Hit]:
    """The hits asked for, and in ``details`` the time of each leg and of re-ranking."""
    started = time.perf_counter()
    hits = _ranked_page(query, options, user, details)
    if query.kind != "hybrid":  # which tells each leg's share itself
        details[f"{query.kind}_ms"] = _milliseconds(started) - details.get("rerank_ms", 0.0)
    return hits


def _ranked_page(
    query: _Query, options: Options, user: int | None, details: dict[str, float]
) -> list[Hit]:
    """The hits asked for; the first of all re-ranked where that is wanted."""
    limit, offset = options.get("limit"), options.get("offset") or 0
    rerank = options.get("rerank")
    settings = search_settings()
    if user is not None and (rerank is None or limit is None):
        rerank_enabled, max_results = _configured(user, options)
        rerank = rerank_enabled if rerank is None else rerank
        limit = max_results if limit is None else limit
    elif limit is None:
        limit = DEFAULT_LIMIT
    # What is no page at all is left for the database to refuse.
    if not rerank or not 0 <= offset < settings.rerank_depth or limit < 1:
        return _fetch(query, options, user, limit, offset, details=details)
    depth = settings.rerank_depth
    hits = _fetch(query, options, user, max(depth, offset + limit), 0, details=details)
    started = time.perf_counter()
    hits = [*_reranked(query, hits[:depth], options), *hits[depth:]]
    details["rerank_ms"] = _milliseconds(started)
    return hits[offset : offset + limit]


def _milliseconds(started: float) -> float:
    return (time.perf_counter() - started) * 1000


def _fetch(
    query: _Query,
    options: Options,
    user: int | None,
    limit: int,
    offset: int,
    *,
    details: dict[str, float],
) -> list[Hit]:
    if query.kind == "vector":
        hits = _prepared(query, options, user, limit, offset)
        if hits is not None:
            return hits
    parameters: dict[str, Any] = {
        "text": None if query.text is None else _clean(query.text),
        "vector": None if query.vector is None else vector_argument(query.vector),
        "vector_weight": query.weights[0],
        "keyword_weight": query.weights[1],
        "threshold": options.get("threshold"),
        "limit": limit,
        "offset": offset,
        "user": user,
        "sources": _sources(options),
        "model": options.get("model"),
        "metadata": _metadata(options),
        "tags": _tags(options),
        "created_after": _aware(options.get("created_after")),
        "fusion": query.fusion,
        "language": options.get("language"),
    }
    to_hit: Callable[[Sequence[Any]], Hit] = _hit
    if query.kind == "vector":
        statement = _SIMILARITY
    else:
        statement = _HYBRID if user is None else _HYBRID_FOR_USER
        to_hit = _explained_hit if options.get("explain") else _hit
    if user is None or query.kind == "vector":
        # These arguments have defaults that NULL would override; where a person's
        # configuration decides it means "as that says".
        for name, default in _DEFAULTS:
            if parameters[name] is None:
                parameters[name] = default
    with search_errors(), binary_cursor(connections[_alias(options)]) as cursor:
        cursor.execute(statement, parameters)
        rows = cursor.fetchall()
    if rows and query.kind == "hybrid":
        legs = zip(("vector_ms", "keyword_ms"), rows[0][-1].split(","), strict=True)
        details.update((name, float(taken)) for name, taken in legs if taken)
    return [to_hit(row) for row in rows]


def _prepared(
    query: _Query, options: Options, user: int | None, limit: int, offset: int
) -> list[Hit] | None:
    """What `similarity_search` finds, by a statement planned once; None: call the function."""
    if query.vector is None or user is not None or offset:
        return None
    if any(options.get(name) is not None for name in _RESTRICTING):
        return None
    with search_errors():
        rows = prepared.nearest(
            connections[_alias(options)], query.vector, options.get("model"), limit
        )
    if rows is None:
        return None
    return [_hit((*row, row[-1], None, "vector")) for row in rows]


#: Options that leave out some of the vectors.
_RESTRICTING = ("threshold", "source", "metadata", "tags", "created_after")

_DEFAULTS = (("vector_weight", 0.7), ("keyword_weight", 0.3))

_SIMILARITY = """
    SELECT document_id, source_table, source_id, chunk_index, title, content, metadata,
        similarity, similarity, NULL::double precision, 'vector'
    FROM similarity_search(
        %(vector)s::vector, %(threshold)s, %(limit)s::integer, NULL, %(user)s::bigint,
        %(model)s, %(metadata)s, %(sources)s::text[], %(tags)s::text[],
        %(created_after)s::timestamptz, %(offset)s::integer)
"""
_HYBRID = """
    SELECT *, current_setting('cartrita_search.leg_ms') FROM hybrid_search(
        %(text)s, %(vector)s::vector, %(vector_weight)s, %(keyword_weight)s,
        %(threshold)s, %(limit)s::integer, NULL, NULL, %(model)s,
        %(metadata)s, %(fusion)s, %(language)s, %(sources)s::text[], %(tags)s::text[],
        %(created_after)s::timestamptz, %(offset)s::integer)
"""
_HYBRID_FOR_USER = """
    SELECT *, current_setting('cartrita_search.leg_ms') FROM hybrid_search_for_user(
        %(user)s::bigint, %(text)s, %(vector)s::vector, %(limit)s::integer,
        NULL, %(model)s, %(metadata)s, %(fusion)s, %(language)s,
        %(vector_weight)s, %(keyword_weight)s, %(threshold)s, %(sources)s::text[],
        %(tags)s::text[], %(created_after)s::timestamptz, %(offset)s::integer)
"""

#: Columns of hybrid_search before those of `Explanation`; the last are the legs' times.
_HIT_COLUMNS = 11


def _hit(row: Sequence[Any]) -> Hit:
    return Hit(*row[:_HIT_COLUMNS])


def _explained_hit(row: Sequence[Any]) -> Hit:
    return replace(_hit(row), explanation=Explanation(*row[_HIT_COLUMNS:-1]))


def _configured(user: int, options: Options) -> tuple[bool, int]:
    """Whether re-ranking is on for that person, and how many results they want."""
    with search_errors(), binary_cursor(connections[_alias(options)]) as cursor:
        cursor.execute(
            "SELECT c.rerank_enabled, c.max_results "
            "FROM effective_retrieval_config(%s::bigint) AS c",
            [user],
        )
        rerank_enabled, max_results = cursor.fetchone()
    return bool(rerank_enabled), max_results or DEFAULT_LIMIT


def _reranked(query: _Query, hits: Sequence[Hit], options: Options) -> list[Hit]:
    """The hits by the reranker's scores, best first, ties by id."""
    reranker = get_reranker()
    vectors: dict[UUID, list[float]] = {}
    if reranker.needs_vectors:
        ids = [hit.id for hit in hits]
        vectors = candidate_vectors(ids, options.get("model"), using=_alias(options))
    scores = reranker.rerank(
        RerankQuery(query.text, query.vector),
        [Candidate(h.id, h.title, h.content, h.hybrid_score, vectors.get(h.id)) for h in hits],
    )
    scored = [replace(hit, rerank_score=score) for hit, score in zip(hits, scores, strict=True)]
    return sorted(scored, key=lambda hit: (-cast("float", hit.rerank_score), hit.id))


def _with_snippets(text: str, hits: Sequence[Hit], options: Options) -> list[Hit]:
    with search_errors(), binary_cursor(connections[_alias(options)]) as cursor:
        cursor.execute(
            "SELECT d.id, search_snippet(d.content, %s, %s) FROM search_documents AS d "
            "WHERE d.id = ANY (%s)",
            [_clean(text), options.get("language"), [hit.id for hit in hits]],
        )
        snippets = dict(cursor.fetchall())
    return [replace(hit, snippet=snippets.get(hit.id)) for hit in hits]


def _embed(text: str, model: str | None) -> tuple[Sequence[float], str]:
    """The text's vector, and the model that it is of."""
    embedder = get_embedder()
    if model is not None and model != embedder.name:
        raise InvalidArgument(
            f'The configured embedder is of model "{embedder.name}", not "{model}".',
            "Give the query's vector under that model, or configure its embedder.",
        )
    return embedder.embed_query(_clean(text)), embedder.name


def _both_weights(
    vector_weight: float | None, keyword_weight: float | None
) -> tuple[float | None, float | None]:
    if vector_weight is None and keyword_weight is not None:
        vector_weight = 1 - keyword_weight
    elif keyword_weight is None and vector_weight is not None:
        keyword_weight = 1 - vector_weight
    return vector_weight, keyword_weight


def _user_id(options: Options) -> int | None:
    user = options.get("user")
    if user is None or (isinstance(user, int) and not isinstance(user, bool)):
        return user
    if isinstance(user, bool) or not hasattr(user, "pk"):
        raise InvalidArgument(f"user is a person or a person's id, not {user!r}.", "Give either.")
    if user.pk is None:
        # An AnonymousUser must not be taken for "no restriction".
        raise InvalidArgument(
            "The user has no id: anonymous, or not saved yet.",
            "Nobody's own documents can be meant; search without one only in trusted code.",
        )
    return cast("int", user.pk)


def _alias(options: Options) -> str:
    return options.get("using") or DEFAULT_DB_ALIAS


def _metadata(options: Options) -> str | None:
    metadata = options.get("metadata")
    try:
        return None if metadata is None else json.dumps(metadata)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(
            f"The metadata to filter by cannot be written as JSON: {error}.",
            'Give an object like {"kind": "note"}.',
        ) from error


def _tags(options: Options) -> list[str] | None:
    tags = options.get("tags")
    if isinstance(tags, str):
        raise InvalidArgument(
            f"The tags must be a list, not the text {tags!r}.", f"Write [{tags!r}]."
        )
    return _texts("tags", tags)


def _sources(options: Options) -> list[str] | None:
    source = options.get("source")
    return [source] if isinstance(source, str) else _texts("source", source)


def _texts(name: str, values: Any) -> list[str] | None:
    texts = list(values) if isinstance(values, Iterable) else values
    # What a NULL among them means is said by the database.
    if texts is None or (
        isinstance(texts, list) and all(text is None or isinstance(text, str) for text in texts)
    ):
        return texts
    raise InvalidArgument(f"{name} is a list of texts, not {values!r:.100}.", 'Like ["one"].')


def _aware(moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    if not isinstance(moment, datetime):
        raise InvalidArgument(
            f"created_after must be a datetime, not {moment!r}.",
            "datetime.fromisoformat() reads one from a text.",
        )
    return make_aware(moment) if is_naive(moment) else moment


def _normal(text: str) -> str:
    """The text as it is searched for: `_clean`, and white space for what it is."""
    return " ".join(_clean(text).split())


def _clean(text: str) -> str:
    """The text without what no PostgreSQL text can hold: NUL and lone surrogates."""
    return text.replace("\x00", " ").encode("utf-8", "replace").decode("utf-8")
