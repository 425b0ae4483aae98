"""The nearest by a statement planned once: the function's answer, or none at all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from django.db import connection, transaction

from cartrita_search import errors, prepared
from cartrita_search.ingest import Document, upsert_documents
from cartrita_search.retrieval import Hit, similarity_search
from tests.conftest import Connect
from tests.postgres import indexes_used, scalar, vector_indexes, vector_text

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("clean_tables")]

MODEL = "synthetic"
ROWS, DIMENSIONS = 1200, 16
VECTORS = np.random.default_rng(3).standard_normal((ROWS + 20, DIMENSIONS), dtype=np.float32)
QUERY = VECTORS[ROWS].tolist()


@pytest.fixture
def preparing() -> Iterator[psycopg.Connection]:
    """Documents behind an HNSW index, and Django's connection preparing what it repeats."""
    upsert_documents(
        (
            Document("books", str(n), f"title {n}", f"text {n}", vector.tolist())
            for n, vector in enumerate(VECTORS[:ROWS])
        ),
        model=MODEL,
    )
    prepared._statements.clear()
    connection.ensure_connection()
    raw: psycopg.Connection = connection.connection
    raw.prepare_threshold = 0
    # Small tables: the planner would rather read them whole.
    raw.execute("SET enable_seqscan = off")
    yield raw
    raw.prepare_threshold = None
    raw.execute("RESET enable_seqscan")
    prepared._statements.clear()


def by_statement(query: list[float] = QUERY, limit: int = 10) -> list[str] | None:
    """The keys that the statement finds; None where it gives way to the function."""
    rows = prepared.nearest(connection, query, MODEL, limit)
    return None if rows is None else [row[2] for row in rows]


def by_function(query: list[float] = QUERY, limit: int = 10) -> list[Hit]:
    raw: psycopg.Connection = connection.connection
    raw.prepare_threshold = None
    try:
        return similarity_search(query, model=MODEL, limit=limit)
    finally:
        raw.prepare_threshold = 0


def test_it_answers_as_the_function_does(preparing: psycopg.Connection) -> None:
    for vector in VECTORS[ROWS:]:
        for limit in (1, 3, 10):
            query = vector.tolist()
            expected = by_function(query, limit)
            assert by_statement(query, limit) == [hit.source_id for hit in expected]
            # By name and as the default model.
            assert similarity_search(query, model=MODEL, limit=limit) == expected
            assert similarity_search(query, limit=limit) == expected


def test_it_is_planned_once_and_reads_the_index(preparing: psycopg.Connection) -> None:
    for vector in VECTORS[ROWS:]:
        assert by_statement(vector.tolist()) is not None
    ours = "FROM pg_prepared_statements WHERE statement LIKE '%%WITH v AS%%'"
    # Five times for the values at hand, then for all.
    assert scalar(preparing, "SELECT sum(custom_plans)::integer " + ours) == 5
    assert scalar(preparing, "SELECT sum(generic_plans)::integer " + ours) == 15

    text = scalar(preparing, "SELECT statement FROM similarity_statement(%s)", [MODEL])
    vector = vector_text(QUERY)
    used = indexes_used(
        preparing, text.replace("$1", "%s").replace("$2", "10"), [vector] * text.count("$1")
    )
    assert set(vector_indexes(preparing)) <= used


def test_from_sql_it_can_be_prepared_by_any_client(
    preparing: psycopg.Connection, connect: Connect
) -> None:
    client = connect(cursor_factory=psycopg.RawCursor)
    text, dimensions = client.execute("SELECT * FROM similarity_statement()").fetchone() or ("", 0)
    assert dimensions == DIMENSIONS
    query = vector_text(QUERY)
    found = client.execute(text, [query, 10], prepare=True).fetchall()
    assert len(found) == 10
    assert (
        found
        == client.execute(
            "SELECT document_id, source_table, source_id, chunk_index, title, content, metadata,"
            " similarity FROM similarity_search($1)",
            [query],
        ).fetchall()
    )
    # A table of the session's own that has the name of one of ours is not read.
    client.execute("CREATE TEMP TABLE embeddings (id integer)")
    assert client.execute(text, [query, 10], prepare=True).fetchall() == found


CHANGES = {
    "another index": "UPDATE embedding_models SET index_storage = 'vector'",
    "another way": "UPDATE embedding_models SET index_method = 'exact'",
    "another width": "UPDATE embedding_models SET ef_search = ef_search + 1",
    "another segment": "UPDATE embedding_models SET visible_segment = visible_segment + 1",
    "the session's width": "SET hnsw.ef_search = 39",
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_gives_way_when_something_has_changed(
    preparing: psycopg.Connection, change: str
) -> None:
    assert by_statement() is not None
    preparing.execute(CHANGES[change])
    try:
        assert by_statement() is None
        assert similarity_search(QUERY, model=MODEL) == by_function()
    finally:
        preparing.execute("RESET hnsw.ef_search")


def test_it_gives_way_when_another_model_has_become_the_default(
    preparing: psycopg.Connection,
) -> None:
    assert prepared.nearest(connection, QUERY, None, 10) is not None
    preparing.execute("SELECT register_embedding_model('other', 2)")
    preparing.execute("UPDATE embedding_models SET is_default = false WHERE is_default")
    preparing.execute("UPDATE embedding_models SET is_default = true WHERE name = 'other'")
    assert prepared.nearest(connection, QUERY, None, 10) is None
    with pytest.raises(errors.DimensionMismatch):
        similarity_search(QUERY)


def test_it_gives_way_when_the_index_is_full_of_deleted_vectors(
    preparing: psycopg.Connection,
) -> None:
    expected = by_function(limit=10)
    assert by_statement() is not None
    # The nearest thirty but ten: the graph still leads to them.
    near = [hit.source_id for hit in by_function(limit=30)]
    preparing.execute("DELETE FROM embeddings WHERE source_id = ANY (%s)", [near[10:]])
    assert by_statement() is None
    assert similarity_search(QUERY, model=MODEL) == expected


def test_a_session_with_a_smaller_width_has_no_such_statement(
    preparing: psycopg.Connection,
) -> None:
    # A model whose width the session's own does not reach is the function's, which sets it.
    preparing.execute("UPDATE embedding_models SET ef_search = 200")
    assert scalar(preparing, "SELECT statement FROM similarity_statement()") is None
    assert by_statement() is None
    assert [hit.source_id for hit in similarity_search(QUERY, model=MODEL)] == [
        hit.source_id for hit in by_function()
    ]


@pytest.mark.parametrize(
    ("query", "model", "error"),
    [
        ([0.0] * DIMENSIONS, MODEL, errors.ZeroVector),
        ([1.0] * (DIMENSIONS + 1), MODEL, errors.DimensionMismatch),
        ([1.0] * DIMENSIONS, "nothing", errors.UnknownModel),
        ([float("nan")] * DIMENSIONS, MODEL, errors.InvalidArgument),
    ],
)
def test_what_cannot_be_searched_is_refused_as_the_function_does(
    preparing: psycopg.Connection, query: list[float], model: str, error: type[Exception]
) -> None:
    assert by_statement() is not None
    with pytest.raises(error):
        similarity_search(query, model=model)


def test_nothing_is_set_in_the_caller_s_transaction(preparing: psycopg.Connection) -> None:
    names = ("hnsw.ef_search", "hnsw.iterative_scan")
    with transaction.atomic():
        before = [scalar(preparing, "SELECT current_setting(%s)", [name]) for name in names]
        assert by_statement() is not None
        after = [scalar(preparing, "SELECT current_setting(%s)", [name]) for name in names]
    assert before == after


def test_where_nothing_is_prepared_the_function_is_called(
    preparing: psycopg.Connection,
) -> None:
    preparing.prepare_threshold = None
    assert by_statement() is None
    assert not prepared._statements
