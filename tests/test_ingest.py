"""upsert_embedding() as any client calls it, what the triggers hold, and bulk ingestion."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import Queue
from threading import Barrier
from typing import Any, TypeVar
from uuid import UUID
from weakref import WeakSet

import numpy as np
import psycopg
import pytest
from django.db import OperationalError, connections, transaction
from django.db import connection as django_connection
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.types.json import Jsonb

from cartrita_search import ingest
from cartrita_search.errors import (
    DimensionMismatch,
    IndexPlanRefused,
    InvalidArgument,
    RebuildInProgress,
    SearchError,
    UnknownModel,
    ZeroVector,
)
from cartrita_search.ingest import (
    Document,
    DocumentVector,
    IngestReport,
    Refusal,
    content_hash,
    delete_source,
    finish_load,
    prune_source,
    stored_hashes,
    upsert_documents,
    upsert_embeddings,
)
from tests.conftest import Connect
from tests.postgres import (
    indexes_used,
    prefer_vector_index,
    refused,
    row_versions,
    scalar,
    upsert,
    vector_text,
    wait_until_blocked,
    writing_nothing,
)

pytestmark = pytest.mark.usefixtures("clean_tables")

T = TypeVar("T")

NOTE: dict[str, Any] = {
    "p_title": "Flutter",
    "p_content": "The wing bends and twists.",
    "p_metadata": Jsonb({"kind": "note"}),
    "p_user_id": 7,
    "p_tags": ["wing", "flutter"],
    "p_language": "english",
}


def document(pg: psycopg.Connection) -> dict[str, Any]:
    """The one document, but for what keyword search derives from it."""
    value: dict[str, Any] = scalar(
        pg,
        "SELECT to_jsonb(d) - '{search_vector, keyword_vector}'::text[] FROM search_documents d",
    )
    return value


def embedding(pg: psycopg.Connection, model: str = "mini") -> dict[str, Any]:
    value: dict[str, Any] = scalar(
        pg,
        "SELECT to_jsonb(e) || jsonb_build_object('embedding', e.embedding::text) "
        "FROM embeddings e WHERE embedding_model = %s",
        [model],
    )
    return value


def counts(pg: psycopg.Connection) -> tuple[int, int, int]:
    """Documents, embeddings, models."""
    row = pg.execute(
        "SELECT (SELECT count(*) FROM search_documents), (SELECT count(*) FROM embeddings), "
        "(SELECT count(*) FROM embedding_models)"
    ).fetchone()
    assert row is not None
    return row


# --- calling it -------------------------------------------------------------------


def test_v1_callers_pass_six_arguments_by_position(pg: psycopg.Connection) -> None:
    key = scalar(
        pg,
        "SELECT upsert_embedding('knowledge_entries', '42', '[1,2,3]', 'ada', 'abc', "
        """'{"category": "x"}')""",
    )

    stored = embedding(pg, "ada")
    assert stored["id"] == str(key)
    assert (stored["source_table"], stored["source_id"]) == ("knowledge_entries", "42")
    assert stored["chunk_index"] == 0
    assert stored["content_hash"] == "abc"
    assert stored["metadata"] == {"category": "x"}
    assert stored["embedding"] == "[1,2,3]"


def test_every_argument_by_name(pg: psycopg.Connection) -> None:
    pg.execute(
        """
        SELECT upsert_embedding(
            p_tags => ARRAY['a', 'b'], p_language => 'german', p_chunk_index => 3,
            p_user_id => 9, p_content => 'Text', p_title => 'Titel',
            p_metadata => '{"k": 1}', p_content_hash => 'h', p_model => 'mini',
            p_embedding => '[0.5,1]', p_source_id => 'x', p_source_table => 'notes')
        """
    )

    stored = document(pg)
    assert {name: stored[name] for name in ("source_table", "source_id", "chunk_index")} == {
        "source_table": "notes",
        "source_id": "x",
        "chunk_index": 3,
    }
    assert (stored["title"], stored["content"], stored["language"]) == ("Titel", "Text", "german")
    assert (stored["user_id"], stored["tags"], stored["metadata"]) == (9, ["a", "b"], {"k": 1})
    assert stored["content_hash"] == "h"


UUID_KEY = "0193e9a1-5c00-7bbb-8ccc-000000000001"


@pytest.mark.parametrize(
    ("key", "source_id"),
    [
        ("'article-7'", "article-7"),
        ("'42'", "42"),
        ("42::text", "42"),
        ("'0193e9a1-5c00-7bbb-8ccc-000000000001'::uuid", UUID_KEY),
        ("'0193e9a1-5c00-7bbb-8ccc-000000000001'", UUID_KEY),
    ],
)
def test_keys_of_any_type(pg: psycopg.Connection, key: str, source_id: str) -> None:
    statement = sql.SQL("SELECT upsert_embedding('notes', {}, '[1,0]', 'mini')").format(
        sql.SQL(key)
    )
    first = scalar(pg, statement)

    assert embedding(pg)["source_id"] == source_id
    assert scalar(pg, statement) == first == upsert(pg, source_id, [1, 0])


def test_a_typed_uuid_parameter(pg: psycopg.Connection) -> None:
    key = upsert(pg, UUID(UUID_KEY), [1, 0], **NOTE)

    assert upsert(pg, UUID_KEY, [1, 0], **NOTE) == key
    assert document(pg)["user_id"] == 7


def test_chunks_of_one_source_are_separate(pg: psycopg.Connection) -> None:
    keys = {upsert(pg, "1", [1, chunk], p_chunk_index=chunk) for chunk in range(3)}

    assert len(keys) == 3
    assert counts(pg) == (3, 3, 1)


# --- unchanged and changed --------------------------------------------------------


@pytest.mark.parametrize("left_out", [(), *((name,) for name in NOTE), tuple(NOTE)])
def test_unchanged_writes_nothing(pg: psycopg.Connection, left_out: Sequence[str]) -> None:
    """Not even a row lock, whether the stored value is repeated or left out."""
    key = upsert(pg, "1", [1, 0], **NOTE)
    before = row_versions(pg, "search_documents"), row_versions(pg, "embeddings")
    again = {name: value for name, value in NOTE.items() if name not in left_out}

    with writing_nothing(pg):
        assert upsert(pg, "1", [1, 0], **again) == key

    assert (row_versions(pg, "search_documents"), row_versions(pg, "embeddings")) == before


def test_a_new_vector_leaves_the_document_alone(pg: psycopg.Connection) -> None:
    key = upsert(pg, "1", [1, 0], **NOTE)
    before = row_versions(pg, "search_documents")

    assert upsert(pg, "1", [0, 1], **NOTE) == key

    assert embedding(pg)["embedding"] == "[0,1]"
    assert row_versions(pg, "search_documents") == before


def test_another_model_leaves_the_document_and_its_first_vector_alone(
    pg: psycopg.Connection,
) -> None:
    first = upsert(pg, "1", [1, 0], **NOTE)
    documents, embeddings = row_versions(pg, "search_documents"), row_versions(pg, "embeddings")

    second = upsert(pg, "1", [1, 0, 0], "large", **NOTE)

    assert second != first
    assert row_versions(pg, "search_documents") == documents
    assert row_versions(pg, "embeddings")[first] == embeddings[first]
    assert embedding(pg, "large")["user_id"] == 7


@pytest.mark.parametrize(
    ("argument", "value", "column"),
    [
        ("p_title", "Divergence", "title"),
        ("p_content", "The wing twists off.", "content"),
        ("p_user_id", 8, "user_id"),
        ("p_tags", ["other"], "tags"),
        ("p_language", "simple", "language"),
        ("p_content_hash", "of the caller", "content_hash"),
    ],
)
def test_what_changed_is_stored_and_the_rest_kept(
    pg: psycopg.Connection, argument: str, value: Any, column: str
) -> None:
    key = upsert(pg, "1", [1, 0], **NOTE)
    before = document(pg)

    assert upsert(pg, "1", [1, 0], **{argument: value}) == key

    after = document(pg)
    assert after[column] == value
    text_changed = column in {"title", "content"}
    changed = {column, "updated_at"} | ({"content_hash"} if text_changed else set())
    assert {name for name in after if after[name] != before[name]} == changed
    stored = embedding(pg)
    for copied in ("user_id", "metadata", "content_hash"):
        assert stored[copied] == after[copied]
    with writing_nothing(pg):
        upsert(pg, "1", [1, 0], **{argument: value})


def test_new_metadata_replaces_the_old_in_both_tables(pg: psycopg.Connection) -> None:
    upsert(pg, "1", [1, 0], **NOTE)
    upsert(pg, "1", [1, 0, 0], "large")

    upsert(pg, "1", [1, 0], p_metadata=Jsonb({"year": 1958}))

    assert document(pg)["metadata"] == {"year": 1958}
    assert embedding(pg)["metadata"] == embedding(pg, "large")["metadata"] == {"year": 1958}


def test_what_is_left_out_is_kept(pg: psycopg.Connection) -> None:
    """Above all the owner: an upsert that does not name them shares nothing."""
    upsert(pg, "1", [1, 0], **NOTE)
    before = document(pg)

    upsert(pg, "1", [0, 1])

    assert document(pg) == before
    assert embedding(pg)["user_id"] == 7


def test_empty_text_and_tags_are_values(pg: psycopg.Connection) -> None:
    upsert(pg, "1", [1, 0], **NOTE)

    upsert(pg, "1", [1, 0], p_title="", p_tags=[], p_metadata=Jsonb({}))

    stored = document(pg)
    assert (stored["title"], stored["tags"], stored["metadata"]) == ("", [], {})
    assert stored["content"] == NOTE["p_content"]


# --- models -----------------------------------------------------------------------


def test_the_first_model_registered_is_the_default(pg: psycopg.Connection) -> None:
    upsert(pg, "1", [1, 0], "mini")
    upsert(pg, "1", [1, 0, 0], "large")

    assert pg.execute(
        "SELECT name, dimensions, is_default FROM embedding_models ORDER BY name"
    ).fetchall() == [("large", 3, False), ("mini", 2, True)]
    upsert(pg, "2", [0, 1], None)
    assert scalar(pg, "SELECT embedding_model FROM embeddings WHERE source_id = '2'") == "mini"


def test_concurrent_first_registrations_leave_one_default(connect: Connect) -> None:
    """Eight sessions, each the first to name its model."""
    sessions = [connect() for _ in range(8)]
    barrier = Barrier(len(sessions))

    def register(number: int) -> None:
        barrier.wait(timeout=30)
        upsert(sessions[number], "1", [1, 0], f"model {number}")

    _at_once(register, len(sessions))

    models = sessions[0].execute("SELECT name, is_default FROM embedding_models").fetchall()
    assert len(models) == 8
    assert [is_default for _, is_default in models].count(True) == 1
    assert counts(sessions[0]) == (1, 8, 8)


# --- concurrency ------------------------------------------------------------------


def test_twenty_connections_upserting_one_key_leave_one_row(connect: Connect) -> None:
    """The row, its vector and the model are all new to every one of them."""
    sessions = [connect() for _ in range(20)]
    barrier = Barrier(len(sessions))

    def write(number: int) -> UUID:
        barrier.wait(timeout=30)
        return upsert(sessions[number], "1", [1, number], p_content=f"Text {number}")

    keys = _at_once(write, len(sessions))

    assert len(set(keys)) == 1
    assert counts(sessions[0]) == (1, 1, 1)
    winner = int(document(sessions[0])["content"].removeprefix("Text "))
    stored = embedding(sessions[0])
    assert stored["embedding"] == vector_text([1, winner]).replace(".0", "")
    assert stored["content_hash"] == content_hash("", f"Text {winner}")


def test_twenty_connections_upserting_their_own_keys(connect: Connect) -> None:
    sessions = [connect() for _ in range(20)]
    barrier = Barrier(len(sessions))

    def write(number: int) -> list[UUID]:
        barrier.wait(timeout=30)
        return [upsert(sessions[number], f"{number}/{row}", [1, row]) for row in range(10)]

    keys = _at_once(write, len(sessions))

    assert len({key for of_session in keys for key in of_session}) == 200
    assert counts(sessions[0]) == (200, 200, 1)


#: A second vector of the one document, through the function and past it.
STORE_A_VECTOR = [
    pytest.param("SELECT upsert_embedding('notes', '1', '[1,0,0]', 'large')", id="upsert"),
    pytest.param(
        "INSERT INTO embeddings (document_id, embedding_model, embedding) "
        "SELECT id, 'large', '[1,0,0]' FROM search_documents",
        id="insert",
    ),
    pytest.param(
        "INSERT INTO embeddings (document_id, embedding_model, embedding, "
        "source_table, source_id, user_id, content_hash) "
        "SELECT id, 'large', '[1,0,0]', source_table, source_id, user_id, content_hash "
        "FROM search_documents",
        id="insert with columns",
    ),
]


@pytest.mark.parametrize("store", STORE_A_VECTOR)
def test_a_vector_stored_during_a_change_of_owner_gets_the_new_one(
    connect: Connect, store: str
) -> None:
    staff, worker, observer = connect(autocommit=False), connect(), connect()
    upsert(observer, "1", [1, 0], p_user_id=1)
    observer.execute("SELECT register_embedding_model('large', 3)")
    staff.execute("UPDATE search_documents SET user_id = 2")

    with ThreadPoolExecutor(1) as thread:
        stored = thread.submit(worker.execute, store)
        wait_until_blocked(observer, worker.info.backend_pid)
        staff.commit()
        stored.result(timeout=30)

    assert _owners(observer) == {"mini": 2, "large": 2}


@pytest.mark.parametrize("store", STORE_A_VECTOR)
def test_a_change_of_owner_reaches_a_vector_not_yet_committed(
    connect: Connect, store: str
) -> None:
    worker, staff, observer = connect(autocommit=False), connect(), connect()
    upsert(observer, "1", [1, 0], p_user_id=1)
    observer.execute("SELECT register_embedding_model('large', 3)")
    worker.execute(store)

    with ThreadPoolExecutor(1) as thread:
        changed = thread.submit(staff.execute, "UPDATE search_documents SET user_id = 2")
        wait_until_blocked(observer, staff.info.backend_pid)
        worker.commit()
        changed.result(timeout=30)

    assert _owners(observer) == {"mini": 2, "large": 2}


def _owners(pg: psycopg.Connection) -> dict[str, int]:
    return dict(pg.execute("SELECT embedding_model, user_id FROM embeddings").fetchall())


def _at_once(task: Callable[[int], T], count: int) -> list[T]:
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(task, range(count)))


# --- content_hash -----------------------------------------------------------------

STORABLE = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@hypothesis_settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(title=STORABLE, content=STORABLE)
def test_python_and_sql_agree_on_the_hash(
    pg: psycopg.Connection, title: str, content: str
) -> None:
    assert scalar(pg, "SELECT document_content_hash(%s, %s)", [title, content]) == content_hash(
        title, content
    )


def test_a_document_without_a_hash_gets_that_of_its_text(pg: psycopg.Connection) -> None:
    upsert(pg, "1", [1, 0], p_title="T", p_content="C")

    assert document(pg)["content_hash"] == embedding(pg)["content_hash"] == content_hash("T", "C")


def test_a_new_text_replaces_the_caller_s_own_hash(pg: psycopg.Connection) -> None:
    upsert(pg, "1", [1, 0], p_content="C", p_content_hash="etag-1")
    assert document(pg)["content_hash"] == "etag-1"

    pg.execute("UPDATE search_documents SET content = 'D'")
    assert document(pg)["content_hash"] == content_hash("", "D")

    pg.execute("UPDATE search_documents SET content = 'E', content_hash = 'etag-2'")
    assert document(pg)["content_hash"] == "etag-2"


def test_stale_and_missing_vectors_are_counted(pg: psycopg.Connection) -> None:
    upsert(pg, "1", [1, 0], p_content="first")
    upsert(pg, "2", [0, 1], p_content="second")
    upsert(pg, "1", [1, 0, 0], "large")
    assert _statistics(pg) == {"mini": (2, 2, 2, 0, 0), "large": (3, 2, 1, 1, 0)}

    # A new text through one model: the other's vector is of the old one.
    upsert(pg, "1", [1, 1], p_content="changed")
    assert _statistics(pg) == {"mini": (2, 2, 2, 0, 0), "large": (3, 2, 1, 1, 1)}

    pg.execute("UPDATE search_documents SET title = 'changed too' WHERE source_id = '1'")
    assert _statistics(pg) == {"mini": (2, 2, 2, 0, 1), "large": (3, 2, 1, 1, 1)}

    upsert(pg, "1", [1, 1], p_title="changed too")
    upsert(pg, "1", [1, 0, 0], "large")
    assert _statistics(pg) == {"mini": (2, 2, 2, 0, 0), "large": (3, 2, 1, 1, 0)}


def test_statistics_of_a_source_without_any_model(pg: psycopg.Connection) -> None:
    pg.execute("INSERT INTO search_documents (source_table, source_id) VALUES ('notes', '1')")

    assert pg.execute(
        "SELECT source_table, embedding_model, documents, embeddings, missing, stale, oldest "
        "FROM vector_search_stats"
    ).fetchall() == [("notes", None, 1, 0, 0, 0, None)]


def _statistics(pg: psycopg.Connection) -> dict[str, tuple[int, int, int, int, int]]:
    rows = pg.execute(
        "SELECT embedding_model, dimensions, documents, embeddings, missing, stale "
        "FROM vector_search_stats WHERE source_table = 'notes'"
    ).fetchall()
    return {model: tuple(figures) for model, *figures in rows}


# --- past the functions -----------------------------------------------------------


def test_copy_goes_through_the_triggers(pg: psycopg.Connection) -> None:
    scalar(pg, "SELECT register_embedding_model('mini', 2)")
    with pg.cursor().copy(
        "COPY search_documents (id, source_table, source_id, user_id, title, content, metadata) "
        "FROM STDIN"
    ) as copy:
        copy.write_row((UUID_KEY, "notes", "1", 7, "Flight", "Wings flutter.", Jsonb({"k": 1})))
    with pg.cursor().copy(
        "COPY embeddings (document_id, embedding_model, embedding) FROM STDIN"
    ) as copy:
        copy.write_row((UUID_KEY, "mini", "[1,0]"))

    assert document(pg)["content_hash"] == content_hash("Flight", "Wings flutter.")
    lexemes = scalar(pg, "SELECT search_vector FROM search_documents")
    assert lexemes == "'flight':1A 'flutter':3 'wing':2"
    stored = embedding(pg)
    assert stored["content_hash"] == content_hash("Flight", "Wings flutter.")
    assert (stored["source_table"], stored["source_id"], stored["user_id"]) == ("notes", "1", 7)
    assert stored["metadata"] == {"k": 1}


@pytest.mark.parametrize(
    ("model", "vector", "sqlstate", "message"),
    [
        ("mini", "[1,0,0]", "SE001", 'has 3 dimensions, but model "mini" has 2'),
        ("mini", "[0,0]", "SE002", "is zero"),
        ("unheard", "[1,0]", "SE003", 'no embedding model "unheard"'),
    ],
)
def test_copy_and_update_refuse_what_an_upsert_would(
    pg: psycopg.Connection, model: str, vector: str, sqlstate: str, message: str
) -> None:
    upsert(pg, "1", [1, 0], p_content="Text")
    upsert(pg, "2", [1, 0], p_content="Text")
    pg.execute("DELETE FROM embeddings WHERE source_id = '2'")
    waiting = scalar(pg, "SELECT id FROM search_documents WHERE source_id = '2'")

    with (
        refused(pg, sqlstate, message),
        pg.cursor().copy(
            "COPY embeddings (document_id, embedding_model, embedding) FROM STDIN"
        ) as copy,
    ):
        copy.write_row((waiting, model, vector))
    with refused(pg, sqlstate, message):
        pg.execute("UPDATE embeddings SET embedding_model = %s, embedding = %s", [model, vector])


def test_a_vector_needs_its_document(pg: psycopg.Connection) -> None:
    upsert(pg, "1", [1, 0])

    with refused(pg, "23503", "no search_documents row"):
        pg.execute(
            "INSERT INTO embeddings (document_id, embedding_model, embedding) "
            "VALUES (%s, 'mini', '[1,0]')",
            [UUID_KEY],
        )


def insert_with_columns(pg: psycopg.Connection, vector: str = "[1,0]", **columns: object) -> None:
    """A vector of the one document, with the copied columns as the writer has them."""
    given = {
        "embedding_model": "mini",
        "embedding": vector,
        "source_table": "notes",
        "source_id": "1",
        "content_hash": "of the writer",
    } | columns
    pg.execute(
        sql.SQL(
            "INSERT INTO embeddings (document_id, {}) SELECT id, {} FROM search_documents"
        ).format(
            sql.SQL(", ").join(map(sql.Identifier, given)),
            sql.SQL(", ").join(map(sql.Literal, given.values())),
        )
    )


def test_copied_columns_are_the_document_s_whatever_the_writer_puts_there(
    pg: psycopg.Connection,
) -> None:
    upsert(pg, "1", [1, 0], p_user_id=7, p_metadata=Jsonb({"k": 1}))
    pg.execute("DELETE FROM embeddings")

    insert_with_columns(pg, source_table="essays", user_id=8, metadata=Jsonb({"k": 2}))

    stored = embedding(pg)
    assert (stored["source_table"], stored["source_id"], stored["user_id"]) == ("notes", "1", 7)
    assert stored["metadata"] == {"k": 1}
    assert stored["content_hash"] == "of the writer"


@pytest.mark.parametrize(
    ("vector", "sqlstate", "message"),
    [
        ("[1,0,0]", "SE001", 'has 3 dimensions, but model "mini" has 2'),
        ("[0,0]", "SE002", "is zero"),
        ("[7e4,0]", "SE002", "outside 0.001 to 60000"),
    ],
)
def test_a_writer_of_all_columns_is_refused_what_does_not_fit(
    pg: psycopg.Connection, vector: str, sqlstate: str, message: str
) -> None:
    upsert(pg, "1", [1, 0])
    pg.execute("DELETE FROM embeddings")

    with refused(pg, sqlstate, message):
        insert_with_columns(pg, vector)


def test_a_document_s_new_key_reaches_its_vectors(pg: psycopg.Connection) -> None:
    upsert(pg, "1", [1, 0])

    pg.execute(
        "UPDATE search_documents SET source_table = 'essays', source_id = '2', chunk_index = 4"
    )

    stored = embedding(pg)
    assert (stored["source_table"], stored["source_id"]) == ("essays", "2")
    assert stored["chunk_index"] == 4


def test_deleting_a_document_deletes_its_vectors(pg: psycopg.Connection) -> None:
    upsert(pg, "1", [1, 0])
    upsert(pg, "1", [1, 0, 0], "large")
    upsert(pg, "2", [1, 0])

    pg.execute("DELETE FROM search_documents WHERE source_id = '1'")

    assert pg.execute("SELECT source_id FROM embeddings").fetchall() == [("2",)]


# --- bad input --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sqlstate", "message"),
    [
        ({"embedding": [1, 0, 0]}, "SE001", 'has 3 dimensions, but model "mini" has 2'),
        ({"embedding": [0, 0]}, "SE002", "The vector is zero"),
        ({"embedding": [1e-4, 0]}, "SE002", "outside 0.001 to 60000"),
        ({"embedding": [1e-42, 0]}, "SE002", "outside 0.001 to 60000"),
        ({"embedding": [6e4, 6e4]}, "SE002", "outside 0.001 to 60000"),
        ({"embedding": [3e38, 3e38]}, "SE002", "outside 0.001 to 60000"),
        ({"embedding": None}, "SE008", "The embedding of notes/1 is NULL"),
        ({"source_table": ""}, "SE008", "must name the row"),
        ({"source_table": None}, "SE008", "must name the row"),
        ({"source_id": ""}, "SE008", "must name the row"),
        ({"source_id": None}, "SE008", "must name the row"),
        ({"p_metadata": Jsonb([1])}, "SE008", "must be a JSON object, not array"),
        ({"p_metadata": Jsonb(None)}, "SE008", "must be a JSON object, not null"),
        ({"p_language": "klingon"}, "SE008", 'no text search configuration "klingon"'),
        ({"p_language": ""}, "SE008", "no text search configuration"),
        ({"p_language": "-"}, "SE008", "no text search configuration"),
        ({"p_language": "3748"}, "SE008", "no text search configuration"),
        ({"p_language": "a.b.c"}, "SE008", "no text search configuration"),
        ({"model": ""}, "SE008", "name has 1 to 200 characters"),
        ({"model": "m" * 201}, "SE008", "name has 1 to 200 characters"),
    ],
)
def test_bad_input_changes_nothing(
    pg: psycopg.Connection, arguments: dict[str, Any], sqlstate: str, message: str
) -> None:
    """Nor does it register a model, where the model is new."""
    good: dict[str, Any] = {"source_id": "1", "embedding": [1, 0], "model": "mini"}
    upsert(pg, **good, **NOTE)

    with refused(pg, sqlstate, message):
        upsert(pg, **NOTE | {"p_content": "Changed."} | good | arguments)
    if sqlstate != "SE001" and "model" not in arguments:
        with refused(pg, sqlstate, message):
            upsert(pg, **NOTE | good | {"model": "new"} | arguments)


def test_no_model_named_and_none_yet(pg: psycopg.Connection) -> None:
    with refused(pg, "SE003", "there is no default model yet"):
        upsert(pg, "1", [1, 0], None)


# --- from Python ------------------------------------------------------------------


def note(number: int, vector: Any = (1.0, 0.5), **changes: Any) -> Document:
    fields: dict[str, Any] = {
        "source_table": "notes",
        "source_id": str(number),
        "title": f"Note {number}",
        "content": "Wings flutter.",
        "embedding": vector,
    }
    return Document(**fields | changes)


@contextmanager
def unwritten(pg: psycopg.Connection) -> Iterator[None]:
    """Assert that no document and no vector is written, nor so much as locked."""

    def rows() -> list[Any]:
        return [
            pg.execute(
                sql.SQL("SELECT id, xmin::text, xmax::text, ctid::text FROM {} ORDER BY 1").format(
                    sql.Identifier(table)
                )
            ).fetchall()
            for table in ("search_documents", "embeddings")
        ]

    before = rows()
    yield
    assert rows() == before


def outcome(report: IngestReport) -> tuple[int, int, int, int]:
    """Rows inserted, updated, unchanged, refused."""
    return report.inserted, report.updated, report.unchanged, report.refused


@pytest.mark.django_db(transaction=True)
class TestBulk:
    """upsert_documents() and upsert_embeddings(), each batch its own transaction."""

    def test_documents_with_and_without_vectors(self, pg: psycopg.Connection) -> None:
        documents = [
            note(1, metadata={"k": [1, "é"]}, user_id=7, tags=["a", "b"], language="simple"),
            note(1, chunk_index=1),
            note(2, None),
        ]

        assert outcome(upsert_documents(iter(documents), model="mini")) == (3, 0, 0, 0)

        hashes = {("1", chunk): content_hash("Note 1", "Wings flutter.") for chunk in (0, 1)}
        assert stored_hashes("notes", "mini") == hashes
        assert stored_hashes("notes", "large") == stored_hashes("essays", "mini") == {}
        assert pg.execute(
            "SELECT metadata, user_id, tags, language FROM search_documents "
            "WHERE source_id = '1' ORDER BY chunk_index"
        ).fetchall() == [({"k": [1, "é"]}, 7, ["a", "b"], "simple"), ({}, None, [], "english")]
        with unwritten(pg):
            assert outcome(upsert_documents(documents, model="mini")) == (0, 0, 3, 0)

    def test_a_bulk_load_stores_what_single_upserts_would(self, pg: psycopg.Connection) -> None:
        texts = {
            "short": ("Wing flutter", "Flutter of a swept wing."),
            "untitled": ("", "See pathlib.Path.rglob"),
            "empty": ("", ""),
            "stop words": ("The", "of the and it"),
            "long title": ("word " * 3000, "text"),
            "many words": ("", " ".join(f"w{n}" for n in range(17_000))),
            "megabytes": ("", " ".join(f"lexeme{n}" for n in range(60_000))),
        }
        for name, (title, content) in texts.items():
            upsert(pg, name, [1, 0], p_title=title, p_content=content, source_table="single")
        upsert_documents(
            [Document("bulk", name, *text, [1, 0]) for name, text in texts.items()], model="mini"
        )

        compared = (
            "SELECT source_id, title, content, language, metadata, content_hash, "
            "search_vector::text, keyword_vector::text FROM search_documents "
            "WHERE source_table = %s ORDER BY 1"
        )
        bulk = pg.execute(compared, ["bulk"]).fetchall()
        assert bulk == pg.execute(compared, ["single"]).fetchall()
        partial = [name for name, *_, metadata, _, _, _ in bulk if metadata]
        assert partial == ["long title", "many words", "megabytes"]

    def test_rows_are_counted_by_what_became_of_them(self, pg: psycopg.Connection) -> None:
        upsert_documents([note(1), note(2), note(3), note(4)], model="mini")

        report = upsert_documents(
            [
                note(1),
                note(2, content="Changed."),
                note(3, [0.0, 1.0]),
                note(4, metadata={"k": 1}),
                note(5),
                note(6, [0.0, 0.0]),
            ],
            model="mini",
        )

        assert outcome(report) == (1, 3, 1, 1)
        assert report.total == 6

    def test_what_is_left_out_is_kept_but_for_an_owner_that_is_to_be_replaced(
        self, pg: psycopg.Connection
    ) -> None:
        upsert_documents([note(1, user_id=7, language="simple")], model="mini")

        with unwritten(pg):
            upsert_documents([note(1)], model="mini")
        assert (document(pg)["user_id"], document(pg)["language"]) == (7, "simple")

        report = upsert_documents([note(1)], model="mini", replace_owner=True)
        assert outcome(report) == (0, 1, 0, 0)
        assert document(pg)["user_id"] is None
        assert embedding(pg)["user_id"] is None

    def test_a_changed_text_makes_the_vectors_of_every_model_stale(
        self, pg: psycopg.Connection
    ) -> None:
        upsert_documents([note(1), note(2)], model="mini")
        upsert_embeddings([DocumentVector("notes", "1", [1, 0, 0])], model="large")

        upsert_documents([note(1, None, content="Changed.")])
        assert _statistics(pg) == {"mini": (2, 2, 2, 0, 1), "large": (3, 2, 1, 1, 1)}

        upsert_embeddings([DocumentVector("notes", "1", [1, 0.5])], model="mini")
        assert _statistics(pg) == {"mini": (2, 2, 2, 0, 0), "large": (3, 2, 1, 1, 1)}

        of_the_old_text = content_hash("Note 1", "Wings flutter.")
        vector = DocumentVector("notes", "1", [1, 0.5], content_hash=of_the_old_text)
        assert outcome(upsert_embeddings([vector], model="mini")) == (0, 1, 0, 0)
        assert _statistics(pg)["mini"] == (2, 2, 2, 0, 1)

    def test_vectors_of_stored_documents(self, pg: psycopg.Connection) -> None:
        upsert_documents([note(1, None, user_id=7, metadata={"k": 1}), note(2, None)])
        arrays: list[Any] = [np.array([1.0, 0.5]), np.array([1, 2])]
        vectors = [
            DocumentVector("notes", "1", arrays[0]),
            DocumentVector("notes", "2", arrays[1]),
            DocumentVector("notes", "3", [1, 0]),
        ]

        report = upsert_embeddings(vectors, model="mini")

        assert outcome(report) == (2, 0, 0, 1)
        assert report.refusals == [Refusal("notes", "3", 0, "SE008", "There is no such document.")]
        assert pg.execute(
            "SELECT source_id, embedding::text, user_id, metadata FROM embeddings ORDER BY 1"
        ).fetchall() == [("1", "[1,0.5]", 7, {"k": 1}), ("2", "[1,2]", None, {})]
        with unwritten(pg):
            assert outcome(upsert_embeddings(vectors[:2], model="mini")) == (0, 0, 2, 0)
        changed = [DocumentVector("notes", "1", [0, 1]), vectors[1]]
        assert outcome(upsert_embeddings(changed, model="mini")) == (0, 1, 1, 0)

    def test_of_one_key_in_a_batch_the_last_is_stored(self, pg: psycopg.Connection) -> None:
        report = upsert_documents([note(1, content=str(n)) for n in range(4)], model="mini")

        assert outcome(report) == (1, 0, 3, 0)
        assert document(pg)["content"] == "3"

    def test_the_default_model_serves_where_none_is_named(self, pg: psycopg.Connection) -> None:
        with pytest.raises(UnknownModel, match="no default model"):
            upsert_documents([note(1)])
        assert counts(pg) == (0, 0, 0)
        upsert_documents([note(1)], model="mini")
        upsert_documents([note(2)])
        assert counts(pg) == (2, 2, 1)

    def test_progress_and_batches(self, pg: psycopg.Connection) -> None:
        """One transaction a batch: told by the transaction that wrote each row."""
        finished: list[int] = []
        upsert_documents(map(note, range(7)), model="mini", batch_size=3, progress=finished.append)

        assert finished == [3, 3, 1]
        sizes = pg.execute(
            "SELECT count(*) FROM search_documents GROUP BY xmin::text ORDER BY 1"
        ).fetchall()
        assert sizes == [(1,), (3,), (3,)]

    def test_a_batch_ends_before_its_texts_fill_the_memory(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ingest, "BATCH_BYTES", 100)
        finished: list[int] = []
        upsert_documents(
            [note(n, content="x" * 60) for n in range(3)], model="mini", progress=finished.append
        )
        assert finished == [1, 1, 1]

    def test_no_more_than_a_batch_is_in_memory(self, pg: psycopg.Connection) -> None:
        class Text(str):
            """A string that can be counted as long as it lives."""

        alive: WeakSet[Text] = WeakSet()
        most = 0

        def documents() -> Iterator[Document]:
            nonlocal most
            for number in range(1000):
                text = Text(f"Text {number}")
                alive.add(text)
                most = max(most, len(alive))
                yield note(number, content=text)

        upsert_documents(documents(), model="mini", batch_size=50)

        assert counts(pg)[0] == 1000
        assert most <= 52

    def test_inside_a_transaction_of_the_caller_s(self, pg: psycopg.Connection) -> None:
        with transaction.atomic():
            report = upsert_documents(map(note, range(7)), model="mini", batch_size=3)
            assert outcome(report) == (7, 0, 0, 0)
            with pytest.raises(ZeroVector):
                upsert_documents([note(8), note(9, [0, 0])], model="mini", on_error="raise")
            assert outcome(upsert_documents([note(1), note(8)])) == (1, 0, 1, 0)
            assert prune_source("notes", ["1", "8"]) == 6
            assert "exact" in finish_load("mini")
            assert counts(pg) == (0, 0, 0)
        assert counts(pg) == (2, 2, 1)

    def test_a_model_that_is_registered_meanwhile_with_other_dimensions(
        self, pg: psycopg.Connection
    ) -> None:
        def documents() -> Iterator[Document]:
            pg.execute("SELECT register_embedding_model('mini', 3)")
            yield note(1)

        with pytest.raises(DimensionMismatch, match='have 2 dimensions, but model "mini" has 3'):
            upsert_documents(documents(), model="mini")
        assert counts(pg) == (0, 0, 1)

    @pytest.mark.parametrize(
        "options", [{"on_error": "ignore"}, {"index": "none"}, {"batch_size": 0}]
    )
    def test_an_option_that_there_is_not(self, options: dict[str, Any]) -> None:
        with pytest.raises(InvalidArgument, match=next(iter(options))):
            upsert_documents([], **options)


BAD_ROWS = [
    ({"embedding": [0.0, 0.0]}, ZeroVector, "The vector is zero"),
    ({"embedding": [1e-4, 0.0]}, ZeroVector, "outside 0.001 to 60000"),
    ({"embedding": [3e38, 3e38]}, ZeroVector, "outside 0.001 to 60000"),
    ({"embedding": [1.0]}, DimensionMismatch, 'has 1 dimensions, but model "mini" has 2'),
    ({"embedding": []}, InvalidArgument, "is empty, or holds NaN or infinity"),
    ({"embedding": [float("nan"), 1.0]}, InvalidArgument, "NaN or infinity"),
    ({"embedding": [float("inf"), 1.0]}, InvalidArgument, "NaN or infinity"),
    ({"embedding": [1e300, 1.0]}, InvalidArgument, "NaN or infinity"),
    ({"embedding": ["1", "0"]}, InvalidArgument, "not a list of numbers"),
    ({"embedding": 1.0}, InvalidArgument, "not a list of numbers"),
    ({"embedding": np.zeros(2)}, ZeroVector, "The vector is zero"),
    ({"embedding": np.array([np.nan, 1])}, InvalidArgument, "NaN or infinity"),
    ({"embedding": np.ones((2, 2))}, InvalidArgument, "not a list of numbers"),
    ({"embedding": np.array(["a", "b"])}, InvalidArgument, "not a list of numbers"),
    ({"language": "klingon"}, InvalidArgument, 'no text search configuration "klingon"'),
    ({"title": "\0"}, InvalidArgument, "title holds a NUL character"),
    ({"content": "\0"}, InvalidArgument, "content holds a NUL character"),
    ({"content": "\ud800"}, InvalidArgument, r"content holds a lone surrogate, U\+D800"),
    ({"content": None}, InvalidArgument, "content is not a text: None"),
    ({"metadata": {"k": "\0"}}, InvalidArgument, "metadata holds a NUL character"),
    ({"metadata": {"k": "\udfff"}}, InvalidArgument, "metadata holds a lone surrogate"),
    ({"metadata": {"k": float("nan")}}, InvalidArgument, "cannot be written as JSON"),
    ({"metadata": {"k": {1, 2}}}, InvalidArgument, "cannot be written as JSON"),
    ({"metadata": ["k"]}, InvalidArgument, "metadata is not an object"),
    ({"tags": "wing"}, InvalidArgument, "tags is one text"),
    ({"tags": ["\0"]}, InvalidArgument, "a tag holds a NUL character"),
    ({"tags": [1]}, InvalidArgument, "a tag is not a text: 1"),
    ({"user_id": "7"}, InvalidArgument, "user_id is an integer"),
    ({"user_id": 1 << 63}, InvalidArgument, "user_id is an integer of 64 bits"),
    ({"source_id": ""}, InvalidArgument, "one is empty"),
    ({"source_id": "x" * 501}, InvalidArgument, "these have 5 and 501"),
    ({"source_id": 5}, InvalidArgument, "source_id is not a text: 5"),
    ({"source_id": "\ud800"}, InvalidArgument, "source_id holds a lone surrogate"),
    ({"source_table": "x" * 129}, InvalidArgument, "these have 129 and 1"),
    ({"chunk_index": -1}, InvalidArgument, "chunk_index counts from 0; it is -1"),
    ({"chunk_index": 1 << 31}, InvalidArgument, "chunk_index counts from 0"),
]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("changes", "kind", "message"), BAD_ROWS, ids=repr)
def test_a_bad_row_is_named_and_the_rest_of_its_batch_stored(
    pg: psycopg.Connection, changes: dict[str, Any], kind: type[SearchError], message: str
) -> None:
    bad = note(5, **changes)

    report = upsert_documents([note(1), bad, note(6)], model="mini")

    assert outcome(report) == (2, 0, 0, 1)
    (refusal,) = report.refusals
    assert refusal.code == kind.code
    assert re.search(message, refusal.message)
    if not {"source_table", "source_id", "chunk_index"} & changes.keys():
        assert (refusal.source_table, refusal.source_id, refusal.chunk_index) == ("notes", "5", 0)
    assert [key for key, _ in sorted(stored_hashes("notes", "mini"))] == ["1", "6"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("changes", "kind", "message"), BAD_ROWS, ids=repr)
def test_a_bad_row_undoes_its_batch_alone_where_it_is_to_raise(
    pg: psycopg.Connection, changes: dict[str, Any], kind: type[SearchError], message: str
) -> None:
    bad = note(5, **changes)
    documents = [*map(note, range(5)), bad, note(6)]

    with pytest.raises(kind, match=f"notes/5#0: .*{message}|{message}.*Its batch was not stored"):
        upsert_documents(documents, model="mini", batch_size=3, on_error="raise")

    assert [key for key, _ in sorted(stored_hashes("notes", "mini"))] == ["0", "1", "2"]
    assert counts(pg) == (3, 3, 1)


@pytest.mark.django_db(transaction=True)
def test_a_vector_without_its_document_raises_where_it_is_to(pg: psycopg.Connection) -> None:
    upsert_documents([note(1, None), note(2, None)])

    with pytest.raises(InvalidArgument, match="notes/3#0: There is no such document"):
        upsert_embeddings(
            [DocumentVector("notes", key, [1, 0]) for key in ("1", "3")],
            model="mini",
            on_error="raise",
        )
    assert counts(pg) == (2, 0, 0)


@pytest.mark.django_db(transaction=True)
def test_refusals_beyond_the_first_are_only_counted(pg: psycopg.Connection) -> None:
    report = upsert_documents([note(n, [0, 0]) for n in range(150)], model="mini")

    assert (report.refused, len(report.refusals)) == (150, ingest.KEPT_REFUSALS)
    # Nor is a model registered by what was refused.
    assert counts(pg) == (0, 0, 0)


@pytest.mark.django_db(transaction=True)
def test_a_reading_that_fails_leaves_whole_batches(pg: psycopg.Connection) -> None:
    def documents() -> Iterator[Document]:
        yield from map(note, range(7))
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        upsert_documents(documents(), model="mini", batch_size=3)
    assert counts(pg) == (6, 6, 1)


@pytest.mark.django_db(transaction=True)
def test_a_killed_load_leaves_whole_batches(pg: psycopg.Connection) -> None:
    with pytest.raises(OperationalError):
        upsert_documents(killing_after(7, pg), model="mini", batch_size=3)
    django_connection.close()
    assert counts(pg) == (6, 6, 1)
    assert outcome(upsert_documents(map(note, range(7)), model="mini")) == (1, 0, 6, 0)


def killing_after(count: int, pg: psycopg.Connection) -> Iterator[Document]:
    """Some documents, then the server process of the load is terminated."""
    yield from map(note, range(count))
    pid = django_connection.connection.info.backend_pid
    pg.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
    yield note(count)


@pytest.mark.django_db(transaction=True)
def test_loads_of_the_same_keys_at_once_do_not_deadlock(pg: psycopg.Connection) -> None:
    """Each in its own order, half of the keys there before, each changing text and vector."""
    loads, keys = 4, 120
    upsert_documents(map(note, range(0, keys, 2)), model="mini")
    barrier = Barrier(loads)

    def load(number: int) -> int:
        order = random.Random(number)
        try:
            barrier.wait(timeout=30)
            for round_ in range(6):
                numbers = order.sample(range(keys), keys)
                report = upsert_documents(
                    [note(n, [1.0, number], content=f"{number}/{round_}") for n in numbers],
                    model="mini",
                    batch_size=40,
                )
                assert report.inserted + report.updated + report.unchanged == keys
                vectors = [DocumentVector("notes", str(n), [number, 1.0]) for n in numbers[:60]]
                upsert_embeddings(vectors, model="mini", batch_size=30)
            return report.refused
        finally:
            connections.close_all()

    assert _at_once(load, loads) == [0] * loads
    assert counts(pg) == (keys, keys, 1)
    assert _statistics(pg)["mini"] == (2, keys, keys, 0, 0)


@pytest.mark.django_db(transaction=True)
def test_vectors_loaded_during_a_change_of_owner_get_the_new_one(connect: Connect) -> None:
    staff, observer = connect(autocommit=False), connect()
    upsert_documents([note(1, user_id=1)], model="mini")
    staff.execute("UPDATE search_documents SET user_id = 2")
    started: Queue[int] = Queue()

    def load() -> None:
        django_connection.ensure_connection()
        started.put(django_connection.connection.info.backend_pid)
        try:
            upsert_embeddings([DocumentVector("notes", "1", [1, 0, 0])], model="large")
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as thread:
        loading = thread.submit(load)
        wait_until_blocked(observer, started.get(timeout=30))
        staff.commit()
        loading.result(timeout=30)

    assert _owners(observer) == {"mini": 2, "large": 2}


# --- out again ----------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_source_is_deleted_with_its_vectors(pg: psycopg.Connection) -> None:
    upsert_documents([note(1), note(1, chunk_index=1), note(1, source_table="essays")], model="m")

    assert delete_source("notes") == 2
    assert delete_source("notes") == 0
    assert pg.execute("SELECT source_table FROM embeddings").fetchall() == [("essays",)]
    assert counts(pg) == (1, 1, 1)


@pytest.mark.django_db(transaction=True)
def test_a_source_is_pruned_to_what_it_still_has(pg: psycopg.Connection) -> None:
    upsert_documents(
        [*map(note, range(6)), note(1, chunk_index=1), note(9, source_table="essays")], model="m"
    )

    assert prune_source("notes", (str(n) for n in (1, 4, 4, 77))) == 4

    rows = pg.execute(
        "SELECT source_table, source_id, chunk_index FROM embeddings ORDER BY 1, 2, 3"
    )
    assert rows.fetchall() == [
        ("essays", "9", 0),
        ("notes", "1", 0),
        ("notes", "1", 1),
        ("notes", "4", 0),
    ]
    assert prune_source("notes", []) == 3


@pytest.mark.django_db(transaction=True)
def test_pruning_by_a_list_that_cannot_be_read_deletes_nothing(pg: psycopg.Connection) -> None:
    upsert_documents(map(note, range(3)), model="m")

    def keep() -> Iterator[str]:
        yield "1"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        prune_source("notes", keep())
    for bad in ("\0", "\ud800", 1):
        with pytest.raises(InvalidArgument):
            prune_source("notes", ["1", bad])  # type: ignore[list-item]
    assert counts(pg) == (3, 3, 1)


# --- beside an index ----------------------------------------------------------------


NEAREST = "SELECT source_id FROM similarity_search('[1,0,0,0,0,0]', match_count => 3)"


def nearest(pg: psycopg.Connection) -> list[str]:
    return [key for (key,) in pg.execute(NEAREST)]


def _directions(count: int) -> list[list[float]]:
    source = random.Random(1)
    vectors = [[source.gauss() for _ in range(6)] for _ in range(count)]
    return sorted(vectors, key=lambda vector: -vector[0] / math.hypot(*vector))


#: At random, in the order of their nearness to the query above. No clusters: a graph
#: may lose its way to one.
DIRECTIONS = _directions(4000)


def around(number: int) -> Document:
    """A document whose vector is the nearer to the query the smaller its number."""
    return note(number, DIRECTIONS[number])


def odd(count: int) -> Iterator[Document]:
    return (around(2 * n + 1) for n in range(count))


def put_aside(pg: psycopg.Connection) -> int:
    """Vectors that searches do not find yet."""
    return int(
        scalar(
            pg,
            "SELECT count(*) FROM embeddings AS e "
            "JOIN embedding_models AS m ON m.name = e.embedding_model "
            "WHERE e.segment > m.visible_segment",
        )
    )


@pytest.fixture
def indexed(
    clean_tables: None,
    transactional_db: None,
    pg: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> int:
    """300 documents 0, 2, 4, … under an HNSW index; "few" vectors are 30."""
    monkeypatch.setattr(ingest, "FEW", 10)
    monkeypatch.setattr(ingest, "SIDE_BY_SIDE", 20)
    pg.execute("UPDATE search_settings SET exact_scan_max_rows = 10")
    upsert_documents((around(2 * n) for n in range(300)), model="mini")
    assert "HNSW" in finish_load("mini")
    prefer_vector_index(pg)
    return 300


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("indexed")
class TestBesideAnIndex:
    """What becomes of an index, and what searches see meanwhile."""

    def test_searches_go_on_over_the_old_rows_until_all_are_visible_at_once(
        self, pg: psycopg.Connection
    ) -> None:
        index = scalar(pg, "SELECT vector_index_name('mini')")
        seen: list[list[str]] = []

        def documents() -> Iterator[Document]:
            for document in odd(300):
                seen.append(nearest(pg))
                yield document
            assert put_aside(pg) == 300
            assert index in indexes_used(pg, NEAREST, [])

        report = upsert_documents(documents(), model="mini", index="rebuild", batch_size=100)

        assert seen == [["0", "2", "4"]] * 300
        assert outcome(report) == (300, 0, 0, 0)
        assert "HNSW" in report.index
        assert "600 vectors" in report.index
        assert nearest(pg) == ["0", "1", "2"]
        assert index in indexes_used(pg, NEAREST, [])
        assert put_aside(pg) == 0

    @pytest.mark.parametrize(
        ("given", "options", "most_aside", "rebuilt"),
        [
            (200, {"index": "keep"}, 0, False),
            (90, {"expected": 90}, 0, False),
            (120, {"expected": 120}, 120, True),
            (40, {"expected": 120}, 40, True),
            (25, {"expected": 120}, 25, False),  # far fewer came than expected
            (90, {}, 60, True),
            (30, {}, 0, False),
        ],
        ids=repr,
    )
    def test_a_load_that_is_large_beside_the_index_is_put_aside(
        self, pg: psycopg.Connection, given: int, options: Any, most_aside: int, rebuilt: bool
    ) -> None:
        """By its length if that is known, else from the 30th new vector on."""
        aside: list[int] = []

        report = upsert_documents(
            odd(given),
            model="mini",
            batch_size=50,
            progress=lambda _: aside.append(put_aside(pg)),
            **options,
        )

        assert max(aside) == most_aside
        assert bool(report.index) is rebuilt
        assert put_aside(pg) == 0
        assert nearest(pg) == ["0", "1", "2"]

    def test_an_index_is_written_to_by_two_connections(self, pg: psycopg.Connection) -> None:
        documents = [*odd(60), note(1001, [0.0] * 6), note(1002, [1.0])]
        report = upsert_documents(documents, model="mini", index="keep")
        assert outcome(report) == (60, 0, 0, 2)
        transactions = "SELECT count(*) FROM search_documents GROUP BY xmin::text ORDER BY 1"
        assert pg.execute(transactions).fetchall() == [(30,), (30,), (300,)]

        changed = [
            DocumentVector("notes", str(number), DIRECTIONS[number + 1]) for number in range(124)
        ]
        report = upsert_embeddings(changed, model="mini", index="keep")
        assert outcome(report) == (0, 122, 0, 2)
        assert [refusal.source_id for refusal in report.refusals] == ["121", "123"]

        # Where an error is to undo its batch, a batch is one transaction.
        with pytest.raises(InvalidArgument, match="no such document"):
            upsert_embeddings(
                [
                    DocumentVector("notes", str(number), DIRECTIONS[number])
                    for number in range(124)
                ],
                model="mini",
                index="keep",
                on_error="raise",
            )
        unchanged = upsert_embeddings(changed[:120], model="mini", index="keep")
        assert outcome(unchanged) == (0, 0, 120, 0)

    def test_a_list_tells_its_length(self) -> None:
        assert upsert_documents(list(odd(120)), model="mini").index
        assert not upsert_documents(list(odd(120)), model="mini").index

    def test_a_rebuild_publishes_what_a_killed_load_put_aside(
        self, pg: psycopg.Connection
    ) -> None:
        def documents() -> Iterator[Document]:
            yield from odd(100)
            pid = django_connection.connection.info.backend_pid
            pg.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
            yield from odd(100)

        with pytest.raises(OperationalError):
            upsert_documents(documents(), model="mini", index="rebuild", batch_size=40)
        django_connection.close()

        assert put_aside(pg) == 80
        assert nearest(pg) == ["0", "2", "4"]
        assert "380 vectors" in finish_load("mini")
        assert nearest(pg) == ["0", "1", "2"]

    def test_a_changed_vector_changes_in_place(self, pg: psycopg.Connection) -> None:
        vector = around(1).embedding
        assert vector is not None
        changed = [DocumentVector("notes", "400", vector)]

        report = upsert_embeddings(changed, model="mini", index="auto", expected=10_000)

        assert outcome(report) == (0, 1, 0, 0)
        assert report.index == ""
        assert nearest(pg) == ["0", "400", "2"]

    def test_a_rebuild_that_cannot_be_had_is_said_and_loses_nothing(
        self, pg: psycopg.Connection, connect: Connect
    ) -> None:
        other = connect(autocommit=False)
        other.execute("SELECT pg_advisory_xact_lock(1129533001)")

        with pytest.raises(RebuildInProgress, match="All rows are stored"):
            upsert_documents(odd(120), model="mini", index="rebuild")

        assert counts(pg)[1] == 420
        other.rollback()
        finish_load("mini")
        assert nearest(pg) == ["0", "1", "2"]

    @pytest.mark.parametrize(
        ("model", "searches"), [("mini", "find the new ones once"), ("new", "are slower until")]
    )
    def test_an_index_that_cannot_be_built_is_said_and_loses_nothing(
        self, pg: psycopg.Connection, model: str, searches: str
    ) -> None:
        def no_room(model: str | None = None, *, using: str) -> str:
            raise IndexPlanRefused("Too little disk.", "Nothing was changed. Make room.")

        with pytest.raises(IndexPlanRefused) as raised:
            upsert_documents([*odd(120)], model=model, finish=no_room)

        assert str(raised.value) == (
            f"Too little disk. All rows are stored; vector searches {searches}"
            f" rebuild_vector_indexes('{model}') has run. Make room."
        )
        assert counts(pg)[1] == 420

    def test_who_does_not_own_the_tables_cannot_rebuild(self, pg: psycopg.Connection) -> None:
        with transaction.atomic(), django_connection.cursor() as cursor:
            cursor.execute("CREATE ROLE loader")
            cursor.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO loader")
            cursor.execute("GRANT ALL ON ALL FUNCTIONS IN SCHEMA public TO loader")
            cursor.execute("SET LOCAL ROLE loader")
            with pytest.raises(InvalidArgument, match="Only the owner"):
                upsert_documents(odd(120), model="mini", index="rebuild")
            report = upsert_documents(list(odd(120)), model="mini")
            assert outcome(report) == (120, 0, 0, 0)
            assert report.index == ""
            transaction.set_rollback(True)
        assert counts(pg)[1] == 300


@pytest.mark.django_db(transaction=True)
def test_without_an_index_nothing_is_put_aside(pg: psycopg.Connection) -> None:
    finished: list[int] = []

    report = upsert_documents(
        odd(50),
        model="mini",
        index="rebuild",
        batch_size=20,
        progress=lambda _: finished.append(put_aside(pg)),
    )

    assert finished == [0, 0, 0]
    assert "exact scan" in report.index


@pytest.mark.django_db(transaction=True)
def test_a_load_that_makes_a_model_large_ends_with_its_first_index(pg: psycopg.Connection) -> None:
    assert upsert_documents(odd(1000), model="mini").index == ""
    with transaction.atomic():  # it would keep writers waiting until the caller's commit
        assert upsert_documents(odd(1100), model="mini").index == ""
    assert upsert_documents(odd(1200), model="mini", index="keep").index == ""
    pg.execute("TRUNCATE search_documents CASCADE")

    report = upsert_documents(odd(1001), model="mini")

    assert report.inserted == 1001
    assert "HNSW" in report.index
    assert scalar(pg, "SELECT index_method FROM embedding_models") == "hnsw"


@pytest.mark.django_db(transaction=True)
def test_an_index_of_before_segments_serves_until_it_is_rebuilt(
    pg: psycopg.Connection, indexed: int
) -> None:
    name = scalar(pg, "SELECT vector_index_name('mini')")
    pg.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(name)))
    pg.execute(
        sql.SQL(
            "CREATE INDEX {} ON embeddings "
            "USING hnsw ((embedding::halfvec(6)) halfvec_cosine_ops) "
            "WHERE embedding_model = 'mini'"
        ).format(sql.Identifier(name))
    )

    assert name in indexes_used(pg, NEAREST, [])
    assert nearest(pg) == ["0", "2", "4"]
