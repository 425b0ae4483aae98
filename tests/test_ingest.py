"""upsert_embedding() as any client calls it, what the triggers hold, and bulk ingestion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any, TypeVar
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.types.json import Jsonb

from cartrita_search.ingest import (
    Document,
    IngestReport,
    content_hash,
    stored_hashes,
    upsert_documents,
)
from tests.conftest import Connect
from tests.postgres import (
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


def note(number: int, vector: Sequence[float] = (1.0, 0.5), **changes: Any) -> Document:
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
def test_documents_in_bulk(pg: psycopg.Connection) -> None:
    documents = [
        note(1, metadata={"k": [1, "é"]}, user_id=7, tags=["a", "b"], language="simple"),
        note(1, chunk_index=1),
    ]

    assert outcome(upsert_documents(iter(documents), model="mini")) == (2, 0, 0, 0)

    hashes = {("1", chunk): content_hash("Note 1", "Wings flutter.") for chunk in (0, 1)}
    assert stored_hashes("notes", "mini") == hashes
    assert stored_hashes("notes", "large") == stored_hashes("essays", "mini") == {}
    assert pg.execute(
        "SELECT metadata, user_id, tags, language FROM search_documents ORDER BY chunk_index"
    ).fetchall() == [({"k": [1, "é"]}, 7, ["a", "b"], "simple"), ({}, None, [], "english")]

    with unwritten(pg):
        assert outcome(upsert_documents(documents, model="mini")) == (0, 0, 2, 0)
