"""Similarity and hybrid search from SQL and from Python, against exhaustive rankings."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth.models import AnonymousUser, User
from django.db import connection, connections, transaction
from django.test import override_settings
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from psycopg import IsolationLevel, sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from cartrita_search import errors
from cartrita_search.embedders import Vector
from cartrita_search.errors import SearchError
from cartrita_search.ingest import Document, upsert_documents
from cartrita_search.models import RetrievalConfig
from cartrita_search.retrieval import (
    Hit,
    akeyword_search,
    asearch,
    asimilarity_search,
    keyword_search,
    search,
    similarity_search,
)
from tests.conftest import Connect
from tests.oracle import Bm25, Fused, cosine, fuse
from tests.postgres import refused, scalar, upsert, vector_text

DIMENSIONS = 8
WORDS = [
    *("wing", "flutter", "shock", "wave", "heat", "slipstream", "tables", "wake"),
    *("boundary", "layer", "supersonic", "jet", "stagnation", "pressure", "cone", "plate"),
]
FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)
QUERY = "supersonic flutter of a wing, and the wing's wake"


@pytest.fixture
def pg(connect: Connect) -> psycopg.Connection:
    """A connection whose one transaction is rolled back: nothing to clean up."""
    return connect(autocommit=False)


class Names(list[str]):
    """A list that `call` sends as an array, not as a vector."""


@dataclass(frozen=True)
class Row:
    """One stored document, and its vector if it has one."""

    document_id: UUID
    embedding_id: UUID | None
    source_table: str
    source_id: str
    user_id: int | None
    metadata: dict[str, Any]
    tags: list[str]
    created_at: datetime
    vector: list[float] | None


@dataclass(frozen=True)
class Corpus:
    """Sixty documents of random words and vectors, some without a vector."""

    pg: psycopg.Connection
    rows: list[Row]

    def passing(
        self,
        *,
        user_id_filter: int | None = None,
        source_filter: str | None = None,
        metadata_filter: Jsonb | None = None,
        source_filters: Names | None = None,
        tag_filter: Names | None = None,
        created_after: datetime | None = None,
    ) -> list[Row]:
        wanted = {} if metadata_filter is None else metadata_filter.obj
        return [
            row
            for row in self.rows
            if (user_id_filter is None or row.user_id in {None, user_id_filter})
            and (source_filter is None or row.source_table == source_filter)
            and (source_filters is None or row.source_table in source_filters)
            and wanted.items() <= row.metadata.items()
            and set(tag_filter or ()) <= set(row.tags)
            and (created_after is None or row.created_at > created_after)
        ]

    def cosines(self, query: Sequence[float], **filters: Any) -> dict[UUID, float]:
        return {
            row.document_id: cosine(query, row.vector)
            for row in self.passing(**filters)
            if row.vector is not None
        }

    def bm25(self, text: str, **filters: Any) -> dict[UUID, float]:
        scores = Bm25(self.pg).scores(self.pg, text)
        return {row.document_id: scores[row.document_id] for row in self.passing(**filters)}


@pytest.fixture
def corpus(pg: psycopg.Connection) -> Corpus:
    random = np.random.default_rng(1958)
    frequency = 1 / np.arange(1, len(WORDS) + 1)
    for number in range(60):
        text = " ".join(random.choice(WORDS, 12, p=frequency / frequency.sum()))
        upsert(
            pg,
            str(number),
            random.normal(size=DIMENSIONS).tolist(),
            source_table="notes" if number % 3 else "essays",
            p_title=" ".join(random.choice(WORDS, 2)),
            p_content=text,
            p_user_id=(None, 1, 2)[number % 5 % 3],
            p_metadata=Jsonb({"kind": "ab"[number % 2], "decade": number % 4}),
            p_tags=Names(["odd" if number % 2 else "even", *["third"][: number % 3 == 0]]),
        )
    pg.execute(
        "UPDATE search_documents SET created_at = %s::timestamptz + source_id::integer * %s",
        [FIRST_DAY, timedelta(days=1)],
    )
    pg.execute("DELETE FROM embeddings WHERE source_id::integer % 7 = 0")
    pg.execute("SELECT refresh_keyword_statistics()")
    rows = pg.execute(
        """
        SELECT d.id, e.id, d.source_table, d.source_id, d.user_id, d.metadata,
            d.tags, d.created_at, e.embedding::real[]
        FROM search_documents AS d LEFT JOIN embeddings AS e ON e.document_id = d.id
        """
    )
    return Corpus(pg, [Row(*row) for row in rows])


@pytest.fixture
def query_vector() -> list[float]:
    vector: list[float] = np.random.default_rng(7).normal(size=DIMENSIONS).tolist()
    return vector


def call(
    pg: psycopg.Connection, function: str, *positional: object, **named: object
) -> list[dict[str, Any]]:
    """The rows of a set-returning function, as mappings. A list is sent as a vector."""
    arguments = [
        *(sql.SQL("%s") for _ in positional),
        *(sql.SQL("{} => %s").format(sql.Identifier(name)) for name in named),
    ]
    statement = sql.SQL("SELECT * FROM {}({})").format(
        sql.Identifier(function), sql.SQL(", ").join(arguments)
    )
    values = [
        vector_text(value) if type(value) is list else value
        for value in (*positional, *named.values())
    ]
    with pg.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement, values).fetchall()


FILTERS: list[dict[str, Any]] = [
    {},
    {"user_id_filter": 1},
    {"source_filter": "essays"},
    {"metadata_filter": Jsonb({"kind": "a"})},
    {"metadata_filter": Jsonb({})},
    {"user_id_filter": 2, "source_filter": "notes", "metadata_filter": Jsonb({"decade": 3})},
    {"user_id_filter": 99},
    {"source_filter": "nowhere"},
    {"metadata_filter": Jsonb({"kind": "c"})},
    {"source_filters": Names(["essays", "nowhere"])},
    {"source_filters": Names(["essays", "notes"]), "source_filter": "notes"},
    {"source_filters": Names()},
    {"tag_filter": Names(["odd"])},
    {"tag_filter": Names(["third", "even"])},
    {"tag_filter": Names()},
    {"tag_filter": Names(["nowhere"])},
    {"created_after": FIRST_DAY + timedelta(days=30)},
    {
        "user_id_filter": 1,
        "tag_filter": Names(["odd"]),
        "created_after": FIRST_DAY + timedelta(days=9),
        "metadata_filter": Jsonb({"kind": "b"}),
    },
]


# --- similarity_search ------------------------------------------------------------


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize(("count", "threshold"), [(5, -1.0), (100, -1.0), (100, 0.3), (3, 0.9999)])
def test_similarity_search_is_the_exact_scan(
    corpus: Corpus,
    query_vector: list[float],
    filters: dict[str, Any],
    count: int,
    threshold: float,
) -> None:
    hits = call(
        corpus.pg,
        "similarity_search",
        query_vector,
        match_threshold=threshold,
        match_count=count,
        **filters,
    )

    rows = {row.document_id: row for row in corpus.rows}
    cosines = corpus.cosines(query_vector, **filters)
    expected = sorted(
        (key for key in cosines if cosines[key] >= threshold), key=lambda key: -cosines[key]
    )[:count]
    assert [hit["id"] for hit in hits] == [rows[key].embedding_id for key in expected]
    assert [hit["similarity"] for hit in hits] == pytest.approx(
        [cosines[key] for key in expected], abs=1e-6
    )
    for hit, key in zip(hits, expected, strict=True):
        assert (hit["source_table"], hit["source_id"], hit["chunk_index"], hit["metadata"]) == (
            rows[key].source_table,
            rows[key].source_id,
            0,
            rows[key].metadata,
        )


def test_pages_are_stable_where_many_are_equally_near(pg: psycopg.Connection) -> None:
    """By id, and the first of a longer list are those of a shorter one."""
    for number in range(300):
        upsert(pg, str(number), [1, 1], p_content="wing")
    everything = pg.execute("SELECT id FROM embeddings ORDER BY id").fetchall()
    documents = pg.execute("SELECT id FROM search_documents ORDER BY id").fetchall()

    for count in (1, 7, 25, 300):
        hits = call(pg, "similarity_search", [1, 1], match_count=count)
        assert [(hit["id"],) for hit in hits] == everything[:count]
        hits = call(pg, "hybrid_search", "wing", None, match_count=count)
        assert [(hit["id"],) for hit in hits] == documents[:count]


def test_each_model_has_its_own_vectors(pg: psycopg.Connection) -> None:
    upsert(pg, "1", [1, 0], "mini")
    upsert(pg, "2", [0, 1, 0], "large")

    assert [hit["source_id"] for hit in call(pg, "similarity_search", [1, 1])] == ["1"]
    named = call(pg, "similarity_search", [1, 1, 1], model_name="large")
    assert [hit["source_id"] for hit in named] == ["2"]


def test_a_person_finds_their_own_and_shared_documents_only(corpus: Corpus) -> None:
    query = [1.0] * DIMENSIONS
    for person in (1, 2, 99):
        allowed = {row.document_id for row in corpus.rows if row.user_id in {None, person}}
        forbidden = {row.document_id for row in corpus.rows} - allowed
        assert forbidden
        every_way = [
            call(corpus.pg, "hybrid_search", QUERY, query, match_count=100, user_id_filter=person),
            call(corpus.pg, "hybrid_search", QUERY, None, match_count=100, user_id_filter=person),
            call(corpus.pg, "hybrid_search_for_user", person, QUERY, query, match_count=100),
        ]
        for hits in every_way:
            assert {hit["id"] for hit in hits} <= allowed
        assert {hit["id"] for hit in every_way[0]} == {
            row.document_id
            for row in corpus.passing(user_id_filter=person)
            if row.vector is not None or corpus.bm25(QUERY)[row.document_id] > 0
        }


# --- hybrid_search ----------------------------------------------------------------


def assert_ranked(hits: list[dict[str, Any]], expected: Sequence[Fused]) -> None:
    assert [hit["hybrid_score"] for hit in hits] == pytest.approx(
        [hit.score for hit in expected], abs=1e-6
    )
    assert [hit["id"] for hit in hits] == [hit.key for hit in expected]
    assert [hit["matched_by"] for hit in hits] == [hit.matched_by for hit in expected]
    for hit, fused in zip(hits, expected, strict=True):
        for found, exact in (
            (hit["vector_similarity"], fused.cosine),
            (hit["keyword_score"], fused.bm25),
        ):
            assert (found is None) == (exact is None)
            assert found == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize("fusion", ["weighted", "rrf"])
@pytest.mark.parametrize(
    "weights", [(0.7, 0.3), (0.5, 0.5), (0.1, 0.9), (1.0, 0.0), (0.0, 1.0), (0.7, 0.3000005)]
)
def test_fusion_is_recomputed(
    corpus: Corpus, query_vector: list[float], fusion: str, weights: tuple[float, float]
) -> None:
    hits = call(
        corpus.pg,
        "hybrid_search",
        QUERY,
        query_vector,
        *weights,
        match_count=60,
        fusion=fusion,
    )

    assert_ranked(
        hits,
        fuse(
            corpus.cosines(query_vector),
            corpus.bm25(QUERY),
            weights=weights,
            fusion=fusion,
            pool=240,
        )[:60],
    )


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_filters_apply_inside_both_legs(
    corpus: Corpus, query_vector: list[float], filters: dict[str, Any]
) -> None:
    hits = call(corpus.pg, "hybrid_search", QUERY, query_vector, match_count=4, **filters)

    assert_ranked(
        hits, fuse(corpus.cosines(query_vector, **filters), corpus.bm25(QUERY, **filters))[:4]
    )


@pytest.mark.parametrize("fusion", ["weighted", "rrf"])
def test_what_one_leg_found_gets_its_true_score_on_the_other(
    corpus: Corpus, query_vector: list[float], fusion: str
) -> None:
    """With a pool smaller than the corpus, so that the legs leave gaps."""
    corpus.pg.execute("UPDATE search_settings SET candidate_pool = 10, rrf_k = 5")

    hits = call(corpus.pg, "hybrid_search", QUERY, query_vector, match_count=2, fusion=fusion)
    longer = call(corpus.pg, "hybrid_search", QUERY, query_vector, match_count=20, fusion=fusion)

    cosines, bm25 = corpus.cosines(query_vector), corpus.bm25(QUERY)
    assert_ranked(hits, fuse(cosines, bm25, fusion=fusion, pool=40, rrf_k=5)[:2])
    # Each window of the ranking reaches four times as far as the one before it.
    expected: list[Fused] = []
    for window, pool in ((10, 40), (40, 160)):
        ranked = fuse(cosines, bm25, fusion=fusion, pool=pool, rrf_k=5)
        placed = {hit.key for hit in expected}
        expected += [hit for hit in ranked if hit.key not in placed][: window - len(placed)]
    assert_ranked(longer, expected[:20])


@pytest.mark.parametrize("threshold", [-1.0, 0.2, 0.6, 1.0, None])
def test_the_threshold_binds_the_vector_leg_alone(
    corpus: Corpus, query_vector: list[float], threshold: float | None
) -> None:
    hits = call(
        corpus.pg,
        "hybrid_search",
        QUERY,
        query_vector,
        similarity_threshold=threshold,
        match_count=60,
    )

    expected = fuse(
        corpus.cosines(query_vector),
        corpus.bm25(QUERY),
        threshold=-1 if threshold is None else threshold,
        pool=240,
    )
    assert_ranked(hits, expected[:60])


def test_all_three_kinds_of_match_occur(corpus: Corpus, query_vector: list[float]) -> None:
    hits = call(
        corpus.pg,
        "hybrid_search",
        "a supersonic jet",
        query_vector,
        similarity_threshold=0.2,
        match_count=60,
    )

    assert {hit["matched_by"] for hit in hits} == {"vector", "keyword", "hybrid"}
    without_vector = {row.document_id for row in corpus.rows if row.vector is None}
    found = [hit for hit in hits if hit["id"] in without_vector]
    assert found
    assert {hit["matched_by"] for hit in found} == {"keyword"}
    assert {hit["vector_similarity"] for hit in found} == {None}


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("fusion", ["weighted", "rrf"])
@pytest.mark.parametrize("text", [None, "", "the of and", "-"])
def test_without_words_the_vector_leg_counts_in_full(
    corpus: Corpus,
    query_vector: list[float],
    text: str | None,
    fusion: str,
    weights: tuple[float, float],
) -> None:
    hits = call(corpus.pg, "hybrid_search", text, query_vector, *weights, fusion=fusion)

    assert_ranked(
        hits, fuse(corpus.cosines(query_vector), None, fusion=fusion, weights=weights)[:10]
    )
    by_similarity = call(corpus.pg, "similarity_search", query_vector)
    assert [hit["source_id"] for hit in hits] == [hit["source_id"] for hit in by_similarity]


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("fusion", ["weighted", "rrf"])
def test_without_a_vector_the_keyword_leg_counts_in_full(
    corpus: Corpus, fusion: str, weights: tuple[float, float]
) -> None:
    hits = call(corpus.pg, "hybrid_search", QUERY, None, *weights, fusion=fusion)

    assert_ranked(hits, fuse(None, corpus.bm25(QUERY), fusion=fusion, weights=weights)[:10])


def test_negations_and_phrases_bind_the_vector_leg_too(
    corpus: Corpus, query_vector: list[float]
) -> None:
    with_wing = {key for key, score in corpus.bm25("wing").items() if score > 0}
    assert with_wing

    negated = call(corpus.pg, "hybrid_search", "flutter -wing", query_vector, match_count=60)
    only = call(corpus.pg, "hybrid_search", "-wing", query_vector, match_count=60)
    demanded = call(corpus.pg, "hybrid_search", '"wing"', query_vector, match_count=60)

    everything = {row.document_id for row in corpus.rows}
    assert {hit["id"] for hit in only} == corpus.cosines(query_vector).keys() - with_wing
    assert {hit["id"] for hit in only} <= {hit["id"] for hit in negated} <= everything - with_wing
    assert {hit["id"] for hit in demanded} == with_wing


def test_a_hit_carries_its_document(pg: psycopg.Connection) -> None:
    upsert(
        pg,
        "1",
        [1, 0],
        p_title="Flutter",
        p_content="Of wings.",
        p_metadata=Jsonb({"k": 1}),
        p_chunk_index=4,
    )

    (hit,) = call(pg, "hybrid_search", "wing", [1, 0])

    assert hit == {
        "id": scalar(pg, "SELECT id FROM search_documents"),
        "source_table": "notes",
        "source_id": "1",
        "chunk_index": 4,
        "title": "Flutter",
        "content": "Of wings.",
        "metadata": {"k": 1},
        "hybrid_score": pytest.approx(1),
        "vector_similarity": pytest.approx(1),
        "keyword_score": pytest.approx(math.log(2)),
        "matched_by": "hybrid",
        "vector_rank": 1,
        "keyword_rank": 1,
        "keyword_share": pytest.approx(1),
        "effective_vector_weight": 0.7,
        "effective_keyword_weight": 0.3,
    }


# --- v1's positions, and a person's configuration -------------------------------------


def test_v1_callers_pass_arguments_by_position(corpus: Corpus, query_vector: list[float]) -> None:
    pg = corpus.pg

    assert call(pg, "similarity_search", query_vector, 0.1, 5, "notes") == call(
        pg,
        "similarity_search",
        query_embedding=query_vector,
        match_threshold=0.1,
        match_count=5,
        source_filter="notes",
    )
    assert call(pg, "hybrid_search", QUERY, query_vector, 0.6, 0.4, 0.1, 5, 1) == call(
        pg,
        "hybrid_search",
        query_text=QUERY,
        query_embedding=query_vector,
        vector_weight=0.6,
        keyword_weight=0.4,
        similarity_threshold=0.1,
        match_count=5,
        user_id_filter=1,
    )
    assert "mini: exact scan" in scalar(pg, "SELECT rebuild_vector_indexes()")


def configure(pg: psycopg.Connection, user_id: int | None, **values: object) -> None:
    columns = {"user_id": user_id, **values}
    pg.execute(
        sql.SQL("INSERT INTO retrieval_configs ({}) VALUES ({})").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)),
            sql.SQL(", ").join(sql.SQL("%s") for _ in columns),
        ),
        list(columns.values()),
    )


SITE: dict[str, Any] = {"vector_weight": 0.4, "keyword_weight": 0.6, "max_results": 3}
OWN: dict[str, Any] = {
    "vector_weight": 0.1,
    "keyword_weight": 0.9,
    "max_results": 4,
    "similarity_threshold": 0.25,
}


@pytest.mark.parametrize(
    ("configs", "meaning"),
    [
        ([], {}),
        ([(None, SITE)], SITE | {"similarity_threshold": 0.0}),
        ([(None, SITE), (1, OWN)], OWN),
        ([(2, OWN)], {}),
        ([(1, OWN | {"is_active": False})], {}),
        (
            [(None, SITE), (1, OWN | {"is_active": False})],
            SITE | {"similarity_threshold": 0.0},
        ),
        ([(1, OWN), (1, SITE | {"is_active": False})], OWN),
    ],
    ids=["none", "site", "own", "another's", "inactive", "inactive, site", "one active of two"],
)
def test_a_person_s_configuration(
    corpus: Corpus,
    query_vector: list[float],
    configs: list[tuple[int | None, dict[str, Any]]],
    meaning: dict[str, Any],
) -> None:
    for user_id, values in configs:
        configure(corpus.pg, user_id, **values)
    weights = {name: value for name, value in meaning.items() if name != "max_results"}

    assert call(corpus.pg, "hybrid_search_for_user", 1, QUERY, query_vector) == call(
        corpus.pg,
        "hybrid_search",
        QUERY,
        query_vector,
        user_id_filter=1,
        match_count=meaning.get("max_results", 10),
        **weights,
    )


@pytest.mark.parametrize(
    "explicit",
    [
        {"vector_weight": 0.5, "keyword_weight": 0.5},
        {"match_count": 2},
        {"similarity_threshold": -1.0},
        {"fusion": "rrf", "source_filter": "notes"},
        {"metadata_filter": Jsonb({"kind": "b"}), "query_language": "simple"},
    ],
)
def test_explicit_arguments_override_the_configuration(
    corpus: Corpus, query_vector: list[float], explicit: dict[str, Any]
) -> None:
    configure(corpus.pg, 1, **OWN)
    stored = {name: value for name, value in OWN.items() if name != "max_results"}

    assert call(corpus.pg, "hybrid_search_for_user", 1, QUERY, query_vector, **explicit) == call(
        corpus.pg,
        "hybrid_search",
        QUERY,
        query_vector,
        **{"user_id_filter": 1, "match_count": 4} | stored | explicit,
    )


def test_a_person_s_search_needs_a_person(corpus: Corpus) -> None:
    with refused(corpus.pg, "SE008", "needs a user id"):
        call(corpus.pg, "hybrid_search_for_user", None, QUERY, None)


# --- refusals ---------------------------------------------------------------------

COMMON_REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"query_embedding": [1.0, 0.0]}, "SE001", 'has 2 dimensions, but model "mini" has 8'),
    ({"query_embedding": [0.0] * DIMENSIONS}, "SE002", "The vector is zero"),
    ({"query_embedding": [1e-5] * DIMENSIONS}, "SE002", "outside 0.001 to 60000"),
    ({"query_embedding": [1e5] * DIMENSIONS}, "SE002", "outside 0.001 to 60000"),
    ({"model_name": "unheard"}, "SE003", 'no embedding model "unheard"'),
    ({"match_count": 0}, "SE005", "between 1 and 10000, not 0"),
    ({"match_count": -1}, "SE005", "between 1 and 10000, not -1"),
    ({"match_count": 10_001}, "SE005", "between 1 and 10000, not 10001"),
    ({"match_count": None}, "SE005", "between 1 and 10000, not NULL"),
    ({"metadata_filter": Jsonb(["kind"])}, "SE008", "must be a JSON object, not array"),
    ({"metadata_filter": Jsonb(None)}, "SE008", "must be a JSON object, not null"),
]


@pytest.mark.parametrize(
    ("arguments", "sqlstate", "message"),
    [
        *COMMON_REFUSALS,
        ({"query_embedding": None}, "SE006", "needs a query vector"),
        ({"match_threshold": 2.0}, "SE007", "between -1 and 1, not 2"),
        ({"match_threshold": -1.1}, "SE007", "between -1 and 1"),
        ({"match_threshold": math.nan}, "SE007", "between -1 and 1, not NaN"),
    ],
)
def test_similarity_search_refuses(
    corpus: Corpus, arguments: dict[str, Any], sqlstate: str, message: str
) -> None:
    good = {"query_embedding": [1.0] * DIMENSIONS}

    with refused(corpus.pg, sqlstate, message):
        call(corpus.pg, "similarity_search", **good | arguments)


@pytest.mark.parametrize("function", ["hybrid_search", "hybrid_search_for_user"])
@pytest.mark.parametrize(
    ("arguments", "sqlstate", "message"),
    [
        *COMMON_REFUSALS,
        ({"query_text": None, "query_embedding": None}, "SE006", "are both NULL"),
        ({"query_embedding": None, "model_name": "unheard"}, "SE003", 'no embedding model "unh'),
        ({"similarity_threshold": 2.0}, "SE007", "between -1 and 1, not 2"),
        ({"similarity_threshold": math.nan}, "SE007", "between -1 and 1, not NaN"),
        ({"vector_weight": 1.1, "keyword_weight": -0.1}, "SE004", "they are 1.1 and -0.1"),
        ({"vector_weight": -0.1, "keyword_weight": 1.1}, "SE004", "they are -0.1 and 1.1"),
        ({"vector_weight": 0.7, "keyword_weight": 0.2}, "SE004", "and sum to 1"),
        ({"vector_weight": 0.7, "keyword_weight": 0.30001}, "SE004", "and sum to 1"),
        ({"vector_weight": 0.5}, "SE004", "they are 0.5 and 0.3"),
        ({"vector_weight": math.nan, "keyword_weight": 0.3}, "SE004", "they are NaN and 0.3"),
        ({"vector_weight": 0.7, "keyword_weight": math.nan}, "SE004", "they are 0.7 and NaN"),
        ({"vector_weight": None}, "SE004", "they are NULL and 0.3"),
        ({"keyword_weight": None}, "SE004", "they are 0.7 and NULL"),
        ({"fusion": "borda"}, "SE008", 'no fusion "borda"'),
        ({"fusion": None}, "SE008", 'no fusion "NULL"'),
        ({"query_language": "klingon"}, "SE008", 'no text search configuration "klingon"'),
        ({"query_language": ""}, "SE008", "no text search configuration"),
        ({"query_language": "-"}, "SE008", "no text search configuration"),
        ({"query_language": "0"}, "SE008", "no text search configuration"),
        ({"query_language": "a.b.c"}, "SE008", "no text search configuration"),
        ({"query_language": '"'}, "SE008", "no text search configuration"),
    ],
)
def test_hybrid_search_refuses(
    corpus: Corpus, function: str, arguments: dict[str, Any], sqlstate: str, message: str
) -> None:
    good: dict[str, Any] = {"query_text": QUERY, "query_embedding": [1.0] * DIMENSIONS}
    if function == "hybrid_search_for_user":
        # To this function NULL means "as configured".
        optional = {"match_count", "vector_weight", "keyword_weight"}
        if any(arguments.get(name, ...) is None for name in optional):
            assert call(corpus.pg, function, 1, **good | arguments)
            return
        good["p_user_id"] = 1

    with refused(corpus.pg, sqlstate, message):
        call(corpus.pg, function, **good | arguments)


def test_no_model_yet(pg: psycopg.Connection) -> None:
    with refused(pg, "SE003", "there is no default model yet"):
        call(pg, "similarity_search", [1.0])
    with refused(pg, "SE003", "there is no default model yet"):
        call(pg, "hybrid_search", "wing", [1.0])
    assert call(pg, "hybrid_search", "wing", None) == []


# --- transactions -----------------------------------------------------------------


@pytest.mark.usefixtures("clean_tables")
@pytest.mark.parametrize("method", ["exact", "hnsw", "ivfflat"])
@pytest.mark.parametrize(
    "isolation",
    [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE],
)
def test_reading_transactions_of_any_isolation_and_nothing_leaks(
    connect: Connect, isolation: IsolationLevel, method: str
) -> None:
    """Every parameter of the session is afterwards what the caller had set."""
    writer = connect()
    writer.execute(
        """
        SELECT upsert_embedding('notes', n::text, ARRAY[1, n / 400.0, 0.5]::vector, 'mini',
            p_content => 'wing flutter')
        FROM generate_series(1, 400) AS n
        """
    )
    if method != "exact":
        writer.execute("UPDATE search_settings SET exact_scan_max_rows = 0")
    if method == "ivfflat":  # which is for graphs beyond the budget
        writer.execute(
            "UPDATE search_settings "
            "SET index_memory_budget_mb = 1, hnsw_m = 100, hnsw_ef_construction = 200"
        )
    writer.execute("SELECT rebuild_vector_indexes()")
    assert scalar(writer, "SELECT index_method FROM embedding_models") == method

    reader = connect(autocommit=False)
    reader.read_only = True
    reader.isolation_level = isolation
    reader.execute("SET LOCAL hnsw.ef_search = 77")
    query = [1.0, 0.1, 0.5]
    call(reader, "similarity_search", query)  # loads pgvector and PL/pgSQL, with parameters
    settings = "SELECT name, setting FROM pg_settings ORDER BY name"
    before = reader.execute(settings).fetchall()
    assert {("hnsw.ef_search", "77"), ("hnsw.iterative_scan", "off")} <= set(before)

    for hits in (
        call(reader, "similarity_search", query),
        call(reader, "hybrid_search", "wing", query),
        call(reader, "hybrid_search", "wing", None),
        call(reader, "hybrid_search_for_user", 1, "wing", query),
    ):
        assert len(hits) == 10
    assert reader.execute(settings).fetchall() == before


# --- from Python ------------------------------------------------------------------


class LetterEmbedder:
    """How often each letter occurs, and a constant, so that no text is without direction."""

    name = "letters"
    dimensions = 27
    batch_size = 10

    def embed_documents(self, texts: Sequence[str]) -> list[Vector]:
        vectors = []
        for text in texts:
            counts = [text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"]
            norm = math.sqrt(1 + sum(count**2 for count in counts))
            vectors.append([component / norm for component in (*counts, 1)])
        return vectors

    def embed_query(self, text: str) -> Vector:
        return self.embed_documents([text])[0]


EMBEDDER = LetterEmbedder()
TEXTS = {
    "flutter": ("Wing flutter", "The flutter of a swept wing."),
    "wake": ("Wakes", "The wake of a wing in a slipstream."),
    "heat": ("Heat transfer", "Heat at the stagnation point of a cone."),
    "own": ("A private note", "My own wing flutter."),
}


@pytest.fixture
def embedder() -> Iterator[None]:
    path = f"{LetterEmbedder.__module__}.{LetterEmbedder.__name__}"
    with override_settings(CARTRITA_SEARCH=settings.CARTRITA_SEARCH | {"EMBEDDER": path}):
        yield


@pytest.fixture
def no_embedder() -> Iterator[None]:
    with override_settings(CARTRITA_SEARCH=settings.CARTRITA_SEARCH | {"EMBEDDER": None}):
        yield


@pytest.fixture
def person(db: None) -> User:
    return User.objects.create(username="ada")


@pytest.fixture
def library(embedder: None, person: User) -> None:
    """Documents in the test's own transaction; one is the person's, the others shared."""
    store_library(person.pk)


def store_library(owner: int | None) -> None:
    upsert_documents(
        [
            Document(
                source_table="notes" if name != "heat" else "essays",
                source_id=name,
                title=title,
                content=content,
                embedding=EMBEDDER.embed_query(f"{title} {content}"),
                metadata={"letters": len(name)},
                user_id=owner if name == "own" else None,
            )
            for name, (title, content) in TEXTS.items()
        ],
        model=EMBEDDER.name,
    )
    with connection.cursor() as cursor:
        cursor.execute("SELECT refresh_keyword_statistics()")


def rows_of(function: str, *arguments: object, **named: object) -> list[dict[str, Any]]:
    """What the SQL function answers within the test's own transaction."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")  # ensures a connection
    raw: psycopg.Connection = connection.connection
    rows = call(raw, function, *arguments, **named)
    # Django's connections hand JSON over as text.
    return [row | {"metadata": json.loads(row["metadata"])} for row in rows]


@contextmanager
def raising(
    kind: type[SearchError], message: str | None = None
) -> Iterator[pytest.ExceptionInfo[SearchError]]:
    """Assert that error, with a hint, in a savepoint so that the test can go on."""
    with pytest.raises(SearchError, match=message) as caught, transaction.atomic():
        yield caught
    assert type(caught.value) is kind
    assert caught.value.hint


def columns(hit: Hit) -> dict[str, Any]:
    """An explained hit as the row of hybrid_search that it was."""
    row: dict[str, Any] = asdict(hit)
    explanation: dict[str, Any] = row.pop("explanation")
    assert (row.pop("snippet"), row.pop("rerank_score")) == (None, None)
    for leg in ("vector", "keyword"):
        explanation[f"effective_{leg}_weight"] = explanation.pop(f"{leg}_weight")
    return row | explanation


def names(hits: Sequence[Hit]) -> list[str]:
    return [hit.source_id for hit in hits]


@pytest.mark.usefixtures("library")
def test_search_gives_the_rows_of_hybrid_search_as_hits() -> None:
    hits = search("wing flutter", explain=True)

    assert [columns(hit) for hit in hits] == rows_of(
        "hybrid_search", "wing flutter", EMBEDDER.embed_query("wing flutter")
    )
    assert {type(hit) for hit in hits} == {Hit}
    best = hits[0]
    assert (best.source_id, best.title, best.matched_by) == ("flutter", "Wing flutter", "hybrid")
    assert isinstance(best.id, UUID)
    assert best.vector_similarity == pytest.approx(
        cosine(
            EMBEDDER.embed_query("wing flutter"),
            EMBEDDER.embed_query("Wing flutter The flutter of a swept wing."),
        )
    )


@pytest.mark.usefixtures("library")
def test_options_reach_the_database() -> None:
    text, vector = "wing flutter", EMBEDDER.embed_query("wing flutter")
    hits = search(
        text,
        vector_weight=0.2,
        keyword_weight=0.8,
        fusion="rrf",
        limit=2,
        threshold=0.1,
        source="notes",
        metadata={"letters": 4},
        model="letters",
        language="simple",
        using="default",
        explain=True,
    )

    assert [columns(hit) for hit in hits] == rows_of(
        "hybrid_search",
        text,
        vector,
        vector_weight=0.2,
        keyword_weight=0.8,
        fusion="rrf",
        match_count=2,
        similarity_threshold=0.1,
        source_filter="notes",
        metadata_filter=Jsonb({"letters": 4}),
        model_name="letters",
        query_language="simple",
    )
    assert names(hits) == ["wake"]


@pytest.mark.usefixtures("library")
def test_similarity_search_by_text_or_vector() -> None:
    vector = EMBEDDER.embed_query("swept")
    hits = similarity_search("swept")

    assert similarity_search(vector) == hits
    rows = rows_of("similarity_search", vector)
    assert names(hits) == [row["source_id"] for row in rows]
    for hit, row in zip(hits, rows, strict=True):
        assert hit.hybrid_score == hit.vector_similarity == row["similarity"]
        assert (hit.keyword_score, hit.matched_by) == (None, "vector")
        assert (hit.title, hit.content) == TEXTS[hit.source_id]
        assert hit.metadata == {"letters": len(hit.source_id)}
    document_ids = {hit.source_id: hit.id for hit in keyword_search("wing heat")}
    assert all(hit.id == document_ids[hit.source_id] for hit in hits)

    nearest = similarity_search("swept", threshold=rows[1]["similarity"], limit=5)
    assert names(nearest) == [row["source_id"] for row in rows[:2]]
    assert names(similarity_search("swept", source="essays")) == ["heat"]
    assert names(similarity_search("swept", metadata={"letters": 3})) == ["own"]
    assert len(similarity_search("swept", limit=1, model="letters")) == 1


@pytest.mark.usefixtures("library", "no_embedder")
def test_keyword_search_needs_no_embedder() -> None:
    hits = keyword_search("flutter", explain=True)

    assert [columns(hit) for hit in hits] == rows_of("hybrid_search", "flutter", None)
    assert set(names(hits)) == {"flutter", "own"}
    assert {hit.vector_similarity for hit in hits} == {None}
    with raising(errors.EmbedderUnavailable, "No embedder is configured"):
        search("flutter")
    with raising(errors.EmbedderUnavailable, "No embedder is configured"):
        similarity_search("flutter")
    vector = EMBEDDER.embed_query("flutter")
    assert search("flutter", vector=vector) != search(None, vector=vector) != []


@pytest.mark.usefixtures("library")
def test_blank_text() -> None:
    vector = EMBEDDER.embed_query("wing")

    assert search("") == search(" \n ") == keyword_search("") == keyword_search("\0") == []
    assert search("", vector=vector) == search(None, vector=vector) != []
    with raising(errors.NothingToSearchFor, "neither text nor a vector"):
        search(None)


@pytest.mark.usefixtures("library")
def test_one_weight_implies_the_other() -> None:
    both = search("wing", vector_weight=0.25, keyword_weight=0.75)

    assert search("wing", vector_weight=0.25) == search("wing", keyword_weight=0.75) == both
    assert both != search("wing")


@pytest.mark.usefixtures("library")
def test_a_user_finds_their_own_with_their_configuration(person: User) -> None:
    stranger = User.objects.create(username="bob")
    for user, own in ((person, True), (person.pk, True), (stranger, False), (None, True)):
        for hits in (
            search("wing", user=user),
            keyword_search("wing", user=user),
            similarity_search("wing", user=user),
        ):
            assert ("own" in names(hits)) is own

    RetrievalConfig.objects.create(
        user=person, vector_weight=0.1, keyword_weight=0.9, max_results=2, similarity_threshold=0.5
    )
    vector = EMBEDDER.embed_query("wing")
    configured = rows_of(
        "hybrid_search",
        "wing",
        vector,
        vector_weight=0.1,
        keyword_weight=0.9,
        similarity_threshold=0.5,
        match_count=2,
        user_id_filter=person.pk,
    )
    assert [columns(hit) for hit in search("wing", user=person, explain=True)] == configured
    assert len(search("wing", user=person, limit=3)) == 3
    explicit = rows_of(
        "hybrid_search",
        "wing",
        vector,
        vector_weight=0.6,
        keyword_weight=0.4,
        similarity_threshold=-1,
        match_count=2,
        user_id_filter=person.pk,
    )
    overriding = search("wing", user=person, vector_weight=0.6, threshold=-1, explain=True)
    assert [columns(hit) for hit in overriding] == explicit


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("function", [search, keyword_search, similarity_search])
@pytest.mark.parametrize("nobody", [AnonymousUser(), User()])
def test_nobody_is_not_everybody(function: Callable[..., list[Hit]], nobody: Any) -> None:
    with raising(errors.InvalidArgument, "The user has no id"):
        function("wing", user=nobody)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"vector": [1.0]}, errors.DimensionMismatch),
        ({"vector": [0.0] * 27}, errors.ZeroVector),
        ({"vector": [1.0] * 27, "model": "unheard"}, errors.UnknownModel),
        ({"model": "unheard"}, errors.InvalidArgument),
        ({"vector_weight": 2.0}, errors.InvalidWeights),
        ({"vector_weight": math.nan}, errors.InvalidWeights),
        ({"vector_weight": 0.5, "keyword_weight": 0.6}, errors.InvalidWeights),
        ({"limit": 0}, errors.InvalidMatchCount),
        ({"limit": -1}, errors.InvalidMatchCount),
        ({"limit": 10_001}, errors.InvalidMatchCount),
        ({"threshold": 1.5}, errors.InvalidThreshold),
        ({"threshold": math.nan}, errors.InvalidThreshold),
        ({"fusion": "borda"}, errors.InvalidArgument),
        ({"language": "klingon"}, errors.InvalidArgument),
        ({"limit": 10**12}, errors.InvalidArgument),
        ({"user": 10**30}, errors.InvalidArgument),
        ({"source": "\0"}, errors.InvalidArgument),
        ({"source": "\ud800"}, errors.InvalidArgument),
        ({"language": "\ud800"}, errors.InvalidArgument),
        ({"metadata": {"k": "\0"}}, errors.InvalidArgument),
        ({"metadata": {"k": "\ud800"}}, errors.InvalidArgument),
        ({"metadata": {"k": math.nan}}, errors.InvalidArgument),
        ({"metadata": {"k": object()}}, errors.InvalidArgument),
        ({"metadata": ["k"]}, errors.InvalidArgument),
        ({"created_after": "the other day"}, errors.InvalidArgument),
        ({"offset": -1}, errors.InvalidMatchCount),
        ({"offset": -1, "rerank": True}, errors.InvalidMatchCount),
        ({"limit": 0, "rerank": True}, errors.InvalidMatchCount),
        ({"offset": 9_995}, errors.InvalidMatchCount),
        ({"source": 5}, errors.InvalidArgument),
        ({"source": [5]}, errors.InvalidArgument),
        ({"tags": 5}, errors.InvalidArgument),
        ({"tags": [["a"]]}, errors.InvalidArgument),
        ({"user": "ada"}, errors.InvalidArgument),
        ({"user": True}, errors.InvalidArgument),
        ({"user_id": 7}, errors.InvalidArgument),
        ({"sources": ["notes"]}, errors.InvalidArgument),
    ],
)
def test_errors_are_of_one_class_each(arguments: dict[str, Any], kind: type[SearchError]) -> None:
    with raising(kind) as caught:
        search("wing", **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    "form",
    [
        tuple,
        np.array,
        lambda vector: np.array(vector, dtype=np.float32),
        lambda vector: list(np.array(vector)),
        lambda vector: [np.float32(component) for component in vector],
        lambda vector: [Decimal(component) for component in vector],
    ],
)
def test_vectors_in_any_numeric_form(form: Callable[[list[float]], Any]) -> None:
    vector: list[float] = np.array(EMBEDDER.embed_query("wing"), dtype=np.float32).tolist()

    assert similarity_search(form(vector)) == similarity_search(vector)
    assert search("wing", vector=form(vector)) == search("wing", vector=vector)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    "vector",
    [
        [],
        np.array([]),
        np.eye(27),
        np.float64(1),
        5,
        ["1"] * 27,
        "1" * 27,
        [None] * 27,
        [[1.0]] * 27,
        [math.nan] * 27,
        [math.inf] + [0.0] * 26,
        [1e39] + [0.0] * 26,
        [10**400] + [0.0] * 26,
        [1j] * 27,
    ],
    ids=repr,
)
def test_what_is_no_vector_is_refused(vector: Any) -> None:
    with raising(errors.InvalidArgument):
        search("wing", vector=vector)


# --- async ------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("clean_tables", "embedder")
def test_the_event_loop_goes_on_while_postgresql_works(connect: Connect) -> None:
    """The loop itself watches its search wait for a lock, and then lets it go."""
    store_library(None)
    observer, blocker = connect(), connect(autocommit=False)
    # Were the loop held up, this would end the wait, and the test fail.
    blocker.execute("SET idle_in_transaction_session_timeout = '30s'")
    blocker.execute("LOCK TABLE search_documents IN ACCESS EXCLUSIVE MODE")
    pid = scalar(blocker, "SELECT pg_backend_pid()")  # a pooler invents the connection's own
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"

    async def scenario() -> list[Hit]:
        searching = asyncio.create_task(akeyword_search("flutter"))
        while not scalar(observer, waiting, [pid]):
            await asyncio.sleep(0)
        assert not searching.done()
        blocker.rollback()
        hits = await searching
        assert await asearch("flutter", limit=2, vector_weight=0.5) == await sync_to_async(search)(
            "flutter", limit=2, vector_weight=0.5
        )
        assert await asimilarity_search("wing", limit=2) == await sync_to_async(similarity_search)(
            "wing", limit=2
        )
        await sync_to_async(connections.close_all)()
        return hits

    assert asyncio.run(scenario()) == keyword_search("flutter")


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("clean_tables", "embedder")
def test_async_searches_raise_as_their_twins_do() -> None:
    store_library(None)

    async def scenario() -> None:
        with pytest.raises(errors.InvalidMatchCount):
            await asearch("wing", limit=0)
        with pytest.raises(errors.InvalidMatchCount):
            await akeyword_search("wing", limit=0)
        with pytest.raises(errors.DimensionMismatch):
            await asimilarity_search([1.0])
        await sync_to_async(connections.close_all)()

    asyncio.run(scenario())


# --- any text, any vector -----------------------------------------------------------

FRAGMENTS = st.sampled_from(
    [
        *("\"-'\\|&!():*<> \n\t%"),
        *("<->", "OR", " -", '"wing', "the", "of", "wing", "flutter", "x" * 3000),
        *("😀", "é", "İ", "\u202e", "-5", "1e5", "a.b@c.de", "http://a/b?c=d", "c:\\temp"),
    ]
)
STORABLE = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
QUERY_TEXTS = st.one_of(st.text(STORABLE), st.lists(FRAGMENTS, max_size=40).map("".join))
#: What Python may hold besides: NUL and lone surrogates.
ANY_TEXTS = st.one_of(QUERY_TEXTS, st.text(), st.text(st.sampled_from('\0\ud800\udfffa -"')))
quick = hypothesis_settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

LONG_TEXTS = {
    "words": "wing flutter " * 8000,
    "different words": " ".join(f"word{number}" for number in range(12_000)),
    "one word": "x" * 100_000,
    "one phrase": '"' + "a1 b2 " * 17_000 + '"',
    "phrases": '"wing flutter" ' * 7000,
    "negations": " ".join(f"-word{number}" for number in range(12_000)),
    "quotes": '"' * 100_000,
    "minus signs": "-" * 100_000,
    "lone minus signs": " -" * 50_000,
    "open negated phrases": ' -"' * 33_000,
    "backslashes": "\\" * 100_000,
    "apostrophes": "'" * 100_000,
    "brackets": "(" * 100_000,
    "stop words": "the of and " * 9000,
    "emoji": "😀 " * 50_000,
    "a path": "/a" * 50_000,
    "an address": "http://" + "a." * 50_000,
    "hyphens": "a-" * 50_000,
    "digits": "1." * 50_000,
}


@quick
@given(text=QUERY_TEXTS)
def test_any_text_is_a_query_in_sql(corpus: Corpus, text: str) -> None:
    pg = corpus.pg
    terms, candidates, restriction = pg.execute(
        "SELECT terms, candidates, restriction FROM keyword_query(%s)", [text]
    ).fetchall()[0]

    assert (terms is None) == (candidates is None)
    keyword_hits = call(pg, "hybrid_search", text, None)
    assert candidates is not None or keyword_hits == []
    hits = call(pg, "hybrid_search", text, [1.0] * DIMENSIONS)
    assert restriction is not None or len(hits) == 10


@pytest.mark.parametrize("kind", LONG_TEXTS)
def test_a_text_of_100_000_characters_is_a_query(corpus: Corpus, kind: str) -> None:
    text = LONG_TEXTS[kind]
    assert len(text) >= 99_000

    keyword_hits = call(corpus.pg, "hybrid_search", text, None)

    assert bool(keyword_hits) == (kind == "words")
    assert call(corpus.pg, "hybrid_search", text, [1.0] * DIMENSIONS) is not None


@pytest.mark.usefixtures("library")
@quick
@given(text=ANY_TEXTS)
@example(text="\0")
@example(text="\ud800")
@example(text="wing\0flutter")
def test_any_text_is_a_query_in_python(text: str) -> None:
    assert all(hit.matched_by == "keyword" for hit in keyword_search(text))
    assert len(search(text)) <= 4
    assert len(similarity_search(text)) == 4


@pytest.mark.usefixtures("library")
def test_nul_and_surrogates_separate_or_replace() -> None:
    assert keyword_search("wing\0flutter") == keyword_search("wing flutter") != []
    assert keyword_search("\ud800 flutter") == keyword_search("flutter") != []


@quick
@given(
    vector=st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False),
        min_size=DIMENSIONS,
        max_size=DIMENSIONS,
    )
)
@example(vector=[0.0] * DIMENSIONS)
@example(vector=[-0.0] * DIMENSIONS)
@example(vector=[3.4e38] * DIMENSIONS)
@example(vector=[1e-45] * DIMENSIONS)
def test_any_finite_vector_is_answered_or_refused_for_its_length(
    corpus: Corpus, vector: list[float]
) -> None:
    stored = corpus.cosines([1.0] * DIMENSIONS)
    length = math.hypot(*vector)

    if 1.001e-3 < length < 5.999e4:
        hits = call(corpus.pg, "similarity_search", vector, match_count=100)
        assert len(hits) == len(stored)
        assert all(-1 <= hit["similarity"] <= 1 for hit in hits)
        assert len(call(corpus.pg, "hybrid_search", None, vector)) == 10
    elif not 0.999e-3 < length < 6.001e4:
        with pytest.raises(psycopg.Error) as caught, corpus.pg.transaction():
            call(corpus.pg, "similarity_search", vector)
        assert caught.value.sqlstate == "SE002"
