"""Search from Python: typed hits over the SQL functions, sync and async.

The ranking itself is in ``sql/retrieval/``; here text becomes a vector, a person
an id, and a row a `Hit`. Every function takes the keyword arguments of
`Options` and raises a `SearchError` for what cannot be searched; nothing is ever
written.

A search without ``user`` is not restricted to anybody's documents: it is for
trusted code. Pass ``user`` whenever a person sees the result.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast
from uuid import UUID

from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS, connections
from psycopg.types.json import Jsonb

from .db import vector_literal
from .embedders import get_embedder
from .errors import InvalidArgument, NothingToSearchFor, search_errors

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser


@dataclass(frozen=True, slots=True)
class Hit:
    """One document found, best first in a list of them.

    ``vector_similarity`` is the cosine in [-1, 1], None where the document has no
    vector under the model or the query has none. ``keyword_score`` is BM25, from
    0 up, None where the query has no words. ``hybrid_score`` is what the list is
    ordered by.
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


_METADATA = [field.name for field in fields(Hit)].index("metadata")


class Options(TypedDict, total=False):
    """What every search accepts; each may be left out."""

    #: A user or a user's id: that person's documents and shared ones, with the
    #: weights, threshold and number of results of their RetrievalConfig.
    user: AbstractBaseUser | int | None
    #: Number of results, 1 to 10,000; default 10, or the person's ``max_results``.
    limit: int | None
    #: Cosine, -1 to 1, below which the vector leg proposes nothing.
    threshold: float | None
    #: Only documents of this ``source_table``.
    source: str | None
    #: Only documents whose metadata contains this object.
    metadata: dict[str, Any] | None
    #: Embedding model; default the embedder's, or for a given vector the
    #: database's default model.
    model: str | None
    #: Text search configuration of the query; default that of `SearchSettings`.
    language: str | None
    #: Database alias.
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
    formulas are in ``sql/retrieval/hybrid_search.v1.sql``.

    Raises a `SearchError`: among them `EmbedderUnavailable` when text has to be
    embedded and nothing is configured for it (`keyword_search` needs none).
    """
    if text is None and vector is None:
        raise NothingToSearchFor(
            "There is nothing to search for: neither text nor a vector.", "Give either."
        )
    if vector is None and text is not None and text.strip():
        vector, options["model"] = _embed(text, options.get("model"))
    weights = _both_weights(vector_weight, keyword_weight)
    return _hybrid(text, vector, options, weights, fusion)


def keyword_search(text: str, **options: Unpack[Options]) -> list[Hit]:
    """The best documents by words alone: BM25, no embedder needed."""
    return _hybrid(text, None, options)


def similarity_search(query: str | Sequence[float], **options: Unpack[Options]) -> list[Hit]:
    """The nearest documents by meaning alone: text, or a vector of the model's dimension.

    `Hit.hybrid_score` is the cosine similarity here.
    """
    if isinstance(query, str):
        query, options["model"] = _embed(query, options.get("model"))
    limit = options.get("limit")
    return _fetch(
        """
        SELECT d.id, s.source_table, s.source_id, s.chunk_index, d.title, d.content, s.metadata,
               s.similarity, s.similarity, NULL::double precision, 'vector'
        FROM similarity_search(%s::vector, %s, %s::integer, %s, %s::bigint, %s, %s) AS s
        JOIN search_documents AS d USING (source_table, source_id, chunk_index)
        ORDER BY s.similarity DESC, s.id
        """,
        [
            vector_literal(query),
            options.get("threshold"),
            10 if limit is None else limit,
            options.get("source"),
            _user_id(options),
            options.get("model"),
            _json(options),
        ],
        options,
    )


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


def _hybrid(
    text: str | None,
    vector: Sequence[float] | None,
    options: Options,
    weights: tuple[float | None, float | None] = (None, None),
    fusion: str = "weighted",
) -> list[Hit]:
    parameters: dict[str, Any] = {
        "text": None if text is None else _clean(text),
        "vector": None if vector is None else vector_literal(vector),
        "vector_weight": weights[0],
        "keyword_weight": weights[1],
        "threshold": options.get("threshold"),
        "limit": options.get("limit"),
        "user": _user_id(options),
        "source": options.get("source"),
        "model": options.get("model"),
        "metadata": _json(options),
        "fusion": fusion,
        "language": options.get("language"),
    }
    if parameters["user"] is not None:
        # NULL means "as the person's configuration says" here, ...
        statement = """
            SELECT * FROM hybrid_search_for_user(
                %(user)s::bigint, %(text)s, %(vector)s::vector, %(limit)s::integer,
                %(source)s, %(model)s,
                %(metadata)s, %(fusion)s, %(language)s,
                %(vector_weight)s, %(keyword_weight)s, %(threshold)s)
        """
    else:
        # ... while these arguments have defaults that NULL would override.
        for name, default in (("vector_weight", 0.7), ("keyword_weight", 0.3), ("limit", 10)):
            if parameters[name] is None:
                parameters[name] = default
        statement = """
            SELECT * FROM hybrid_search(
                %(text)s, %(vector)s::vector, %(vector_weight)s, %(keyword_weight)s,
                %(threshold)s, %(limit)s::integer, NULL, %(source)s, %(model)s,
                %(metadata)s, %(fusion)s, %(language)s)
        """
    return _fetch(statement, parameters, options)


def _fetch(statement: str, parameters: dict[str, Any] | list[Any], options: Options) -> list[Hit]:
    with (
        search_errors(),
        connections[options.get("using") or DEFAULT_DB_ALIAS].cursor() as cursor,
    ):
        cursor.execute(statement, parameters)
        return [_hit(row) for row in cursor.fetchall()]


def _hit(row: Sequence[Any]) -> Hit:
    values = list(row)
    # Django leaves JSON to its model fields: a bare cursor hands over its text.
    values[_METADATA] = json.loads(values[_METADATA])
    return Hit(*values)


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
    if user is None or isinstance(user, int):
        return user
    if user.pk is None:
        # An AnonymousUser must not be taken for "no restriction".
        raise InvalidArgument(
            "The user has no id: anonymous, or not saved yet.",
            "Nobody's own documents can be meant; search without one only in trusted code.",
        )
    return cast("int", user.pk)


def _json(options: Options) -> Jsonb | None:
    metadata = options.get("metadata")
    return None if metadata is None else Jsonb(metadata)


def _clean(text: str) -> str:
    """The text without what no PostgreSQL text can hold: NUL and lone surrogates."""
    return text.replace("\x00", " ").encode("utf-8", "replace").decode("utf-8")
