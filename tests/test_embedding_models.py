"""Embedding models: storages of every dimension, the default, moving over, dropping."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from io import StringIO
from typing import Any

import numpy as np
import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from cartrita_search.errors import InvalidArgument, RebuildInProgress, UnknownModel
from cartrita_search.ingest import Document, DocumentVector, upsert_documents, upsert_embeddings
from cartrita_search.ops.embedding_models import drop, make_default, status
from tests.conftest import Connect, Manage
from tests.postgres import (
    index_name,
    indexes_used,
    prefer_vector_index,
    scalar,
    upsert,
    vector_indexes,
    vector_text,
    wait_until_blocked,
)

pytestmark = [pytest.mark.usefixtures("clean_tables"), pytest.mark.django_db(transaction=True)]

Vectors = np.ndarray[Any, np.dtype[np.float32]]


def clustered(seed: int, rows: int, dimensions: int) -> Vectors:
    """Unit vectors about a centre for each 30: as with texts, some are much nearer than most."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((max(1, rows // 30), dimensions), np.float32)
    vectors = np.resize(centres, (rows, dimensions))
    vectors = vectors + 0.7 * generator.standard_normal(vectors.shape, np.float32)
    found: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


def store(vectors: Vectors, model: str) -> None:
    """Documents "0", "1", ... with these vectors."""
    upsert_documents(
        (
            Document("notes", str(number), f"note {number}", embedding=vector)
            for number, vector in enumerate(vectors)
        ),
        model=model,
        index="keep",
        on_error="raise",
    )


def embed(vectors: Vectors, model: str, first: int = 0) -> None:
    """These vectors under another model, for documents that are stored already."""
    upsert_embeddings(
        (DocumentVector("notes", str(n), vector) for n, vector in enumerate(vectors, first)),
        model=model,
        index="keep",
        on_error="raise",
    )


def rebuild(pg: psycopg.Connection, model: str) -> str:
    pg.execute("UPDATE search_settings SET exact_scan_max_rows = 10")
    return str(scalar(pg, "SELECT rebuild_vector_indexes(%s)", [model]))


def nearest(pg: psycopg.Connection, vector: Vectors, model: str | None = None) -> list[int]:
    rows = pg.execute(
        "SELECT source_id::integer FROM similarity_search(%s, model_name => %s)",
        [vector_text(vector.tolist()), model],
    )
    return [number for (number,) in rows]


def truly_nearest(vectors: Vectors, query: Vectors, count: int = 10) -> list[int]:
    return [int(number) for number in np.argsort(-(vectors @ query), kind="stable")[:count]]


def run(*arguments: str) -> tuple[str, str]:
    """What the command writes to both streams."""
    out, err = StringIO(), StringIO()
    call_command("embedding_models", *arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def rows_of(pg: psycopg.Connection, model: str) -> int:
    return int(scalar(pg, "SELECT count(*) FROM embeddings WHERE embedding_model = %s", [model]))


@pytest.fixture
def in_thread() -> Iterator[Callable[..., Any]]:
    """Run a function beside the test, on a Django connection of its own.

    Ask for it before raw connections: they must be closed for what waits to end.
    """

    def with_connection(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        with closing(connection):
            return function(*arguments, **named)

    with ThreadPoolExecutor() as threads:
        yield lambda function, *a, **named: threads.submit(with_connection, function, *a, **named)


@pytest.fixture
def two_models(pg: psycopg.Connection) -> tuple[Vectors, Vectors]:
    """300 documents under "old", the default, of 32 dimensions, and "new" of 16; indexed."""
    old, new = clustered(1, 300, 32), clustered(2, 300, 16)
    store(old, "old")
    embed(new, "new")
    rebuild(pg, "old")
    rebuild(pg, "new")
    return old, new


# --- Storages -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dimensions", "preferred", "storage", "rows"),
    [
        (64, "vector", "vector", 3000),
        (384, "auto", "halfvec", 3000),
        (2000, "vector", "vector", 1000),
        (4000, "halfvec", "halfvec", 1000),
        (4001, "auto", "bit", 1000),
        (16_000, "bit", "bit", 600),
    ],
)
def test_each_storage_finds_what_the_exact_scan_finds(
    pg: psycopg.Connection, dimensions: int, preferred: str, storage: str, rows: int
) -> None:
    both = clustered(dimensions, rows + 30, dimensions)
    # The last of each cluster are asked for, not stored.
    vectors, queries = both[:rows], both[rows:]
    store(vectors, "model")
    pg.execute("UPDATE search_settings SET exact_scan_max_rows = 10")
    run("storage", "model", preferred)

    report = rebuild(pg, "model")

    assert f"HNSW on {storage}" in report
    found = status("model")
    assert (found.index_method, found.index_storage) == ("hnsw", storage)
    assert found.measured_recall is not None
    assert found.measured_recall >= 0.95
    prefer_vector_index(pg)
    for search in (
        "SELECT source_id::integer FROM similarity_search(%s)",
        "SELECT source_id::integer FROM hybrid_search(NULL, %s)",
    ):
        assert index_name(pg, "model") in indexes_used(
            pg, search, [vector_text(queries[0].tolist())]
        )
        hits = 0
        for query in queries:
            answer = pg.execute(search, [vector_text(query.tolist())]).fetchall()
            assert len(answer) == 10
            hits += len({number for (number,) in answer} & {*truly_nearest(vectors, query)})
        assert hits / (10 * len(queries)) >= 0.95


def test_models_of_several_storages_share_the_table(pg: psycopg.Connection) -> None:
    vectors = {
        "small": clustered(1, 60, 64),
        "large": clustered(2, 60, 3000),
        "huge": clustered(3, 60, 5000),
    }
    store(vectors["small"], "small")
    for model in ("large", "huge"):
        embed(vectors[model], model)
    pg.execute("UPDATE search_settings SET exact_scan_max_rows = 10")
    for model, storage in (("small", "vector"), ("large", "halfvec"), ("huge", "bit")):
        out, _ = run("storage", model, storage, "--rebuild")
        assert out.startswith(f"{model}: HNSW on {storage}")

    assert set(vector_indexes(pg)) == {index_name(pg, model) for model in vectors}
    for model, stored in vectors.items():
        assert nearest(pg, stored[7], model) == truly_nearest(stored, stored[7])


def test_another_storage_takes_effect_with_the_next_rebuild(
    pg: psycopg.Connection, two_models: tuple[Vectors, Vectors]
) -> None:
    before = vector_indexes(pg)
    out, _ = run("storage", "old", "vector")
    assert "serves until it is rebuilt" in out
    assert vector_indexes(pg) == before
    assert (status("old").index_storage, status("old").preferred_storage) == ("halfvec", "vector")

    out, _ = run("storage", "old", "vector", "--rebuild")
    assert out.startswith("old: HNSW on vector")
    assert vector_indexes(pg)[index_name(pg, "new")] == before[index_name(pg, "new")]
    assert status("old").index_storage == "vector"
    run("storage", "old", "auto", "--rebuild")
    assert status("old").index_storage == "halfvec"


@pytest.mark.parametrize(
    ("dimensions", "storage", "advice"),
    [
        (2001, "vector", "up to 2000 dimensions; model has 2001. Choose halfvec, bit or auto."),
        (4001, "vector", "up to 2000 dimensions; model has 4001. Choose bit or auto."),
        (4001, "halfvec", "up to 4000 dimensions; model has 4001. Choose bit or auto."),
    ],
)
def test_a_storage_that_cannot_index_the_dimension_is_refused(
    pg: psycopg.Connection, dimensions: int, storage: str, advice: str
) -> None:
    pg.execute("SELECT register_embedding_model('model', %s)", [dimensions])
    with pytest.raises(CommandError) as refusal:
        run("storage", "model", storage, "--rebuild")
    assert str(refusal.value) == f"{storage} indexes {advice} Nothing was changed."
    assert status("model").preferred_storage == "auto"


# --- Listing ------------------------------------------------------------------


def test_the_list_says_how_each_model_stands(
    pg: psycopg.Connection, two_models: tuple[Vectors, Vectors]
) -> None:
    pg.execute("UPDATE search_documents SET content = 'changed' WHERE source_id < '11'")
    pg.execute(
        "UPDATE embeddings SET segment = 9 WHERE embedding_model = 'new' AND source_id = '6'"
    )
    pg.execute("SELECT register_embedding_model('none yet', 16000)")
    changed = scalar(pg, "SELECT count(*) FROM search_documents WHERE content = 'changed'")

    out, err = run("list")
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines[2:]] == ["new", "none", "old"]
    assert lines[4][1:9] == ["32", "yes", "hnsw", "halfvec", "auto", "300", str(changed), "0"]
    assert lines[2][1:8] == ["16", "hnsw", "halfvec", "auto", "299", str(changed), "1"]
    assert lines[3][2:] == ["16000", "exact", "scan", "auto", "0", "0", "300", "-", "-"]
    assert max(map(len, out.splitlines())) <= 100
    assert "1 documents have no vector under new" in err
    assert "1 vectors of new are not found before its index is rebuilt" in err

    new, none, old = json.loads(run("list", "--json")[0])
    assert (old["is_default"], old["index_method"], old["planned_method"]) == (True, *["hnsw"] * 2)
    assert old["index_bytes"] == scalar(
        pg, "SELECT pg_relation_size(%s::regclass)", [index_name(pg, "old")]
    )
    assert old["measured_recall"] >= old["target_recall"] == 0.95
    assert (new["missing"], new["put_aside"], none["index_bytes"]) == (1, 1, None)


def test_a_list_of_nothing() -> None:
    assert "No embedding model is registered" in run("list")[0]
    assert json.loads(run("list", "--json")[0]) == []


def test_the_command_line(manage: Manage, two_models: tuple[Vectors, Vectors]) -> None:
    done = manage("embedding_models", "list")
    assert (done.returncode, done.stderr) == (0, "")
    assert "hnsw halfvec" in done.stdout
    for arguments, code, message in (
        (["default", "none"], 1, 'CommandError: There is no embedding model "none". Nothing was'
         " changed. There are: new, old.\n"),
        (["drop", "old", "--noinput"], 1, 'CommandError: "old" is the default embedding model and'
         " stays. Nothing was changed. Make another the default first: manage.py embedding_models"
         " default NAME (new)\n"),
    ):  # fmt: skip
        done = manage("embedding_models", *arguments)
        assert (done.returncode, done.stdout, done.stderr) == (code, "", message)
    for unreadable in ([], ["rename", "old"], ["storage", "old", "float"], ["default"]):
        assert manage("embedding_models", *unreadable).returncode == 2
    assert manage("embedding_models", "default", "new").returncode == 0
    done = manage("embedding_models", "drop", "old")
    assert (done.returncode, done.stdout.count("\n")) == (1, 0)
    assert "say --noinput" in done.stderr
    done = manage("embedding_models", "drop", "old", "--noinput")
    assert done.returncode == 0
    assert done.stdout.startswith("Dropped old: 300 vectors, embeddings_old_")
    assert "Dropping old: 300 of 300 (100 %)" in done.stderr


# --- The default --------------------------------------------------------------


def test_a_switch_is_seen_at_once_and_keeps_nobody_waiting(
    pg: psycopg.Connection, connect: Connect, two_models: tuple[Vectors, Vectors]
) -> None:
    old, new = two_models
    writer = connect(autocommit=False)
    upsert(writer, "being written", old[0].tolist(), "old")
    pg.execute("SET lock_timeout = '2s'")

    with transaction.atomic():
        make_default("new")  # does not wait for the writer
        assert nearest(pg, old[3]) == truly_nearest(old, old[3])
        upsert(pg, "under the default", old[0].tolist(), None)
        upsert(pg, "under the new", new[0].tolist(), "new")

    assert nearest(pg, new[3]) == truly_nearest(new, new[3])
    writer.commit()
    assert [status(name).is_default for name in ("old", "new")] == [False, True]
    assert rows_of(pg, "old") == 302


def test_of_two_switches_at_once_the_later_one_wins(
    in_thread: Callable[..., Any],
    pg: psycopg.Connection,
    two_models: tuple[Vectors, Vectors],
) -> None:
    pg.execute("SELECT register_embedding_model('third', 3)")
    with transaction.atomic():
        make_default("new")
        later = in_thread(make_default, "third")
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            (own,) = cursor.fetchone()
        waiting = None
        while waiting is None:
            waiting = scalar(
                pg,
                "SELECT min(pid) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))",
                [own],
            )
    later.result(timeout=30)
    defaults = pg.execute("SELECT name FROM embedding_models WHERE is_default").fetchall()
    assert defaults == [("third",)]


def test_the_default_again_is_no_change(
    pg: psycopg.Connection, two_models: tuple[Vectors, Vectors]
) -> None:
    versions = "SELECT name, xmin::text, is_default FROM embedding_models ORDER BY name"
    before = pg.execute(versions).fetchall()
    out, err = run("default", "old")
    assert out == "Searches that name no model are answered by old.\n"
    assert err == ""
    assert [row[2] for row in pg.execute(versions)] == [False, True]
    assert pg.execute(versions).fetchall() == before


def test_a_default_that_is_not_ready_is_told(
    pg: psycopg.Connection, two_models: tuple[Vectors, Vectors]
) -> None:
    embed(clustered(4, 200, 8), "third")
    _, err = run("default", "third")
    assert "100 documents have no vector under third" in err
    assert "third has no index" in err
    # The very command that it names mends it.
    command = err.partition("embedding_models ")[2].split()
    run(*command)
    assert status("third").index_method == "hnsw"


# --- Dropping -----------------------------------------------------------------


@pytest.fixture
def dropping(pg: psycopg.Connection, two_models: tuple[Vectors, Vectors]) -> Vectors:
    """As `two_models`, with "new" the default: what "old" was may go."""
    make_default("new")
    return two_models[1]


def assert_old_is_gone(pg: psycopg.Connection, new: Vectors) -> None:
    """... and nothing else."""
    assert rows_of(pg, "old") == 0
    assert set(vector_indexes(pg)) == {index_name(pg, "new")}
    assert pg.execute("SELECT name FROM embedding_models").fetchall() == [("new",)]
    assert rows_of(pg, "new") == scalar(pg, "SELECT count(*) FROM search_documents") == 300
    assert nearest(pg, new[3]) == truly_nearest(new, new[3])


def test_a_model_goes_with_its_index_and_vectors(
    pg: psycopg.Connection, dropping: Vectors
) -> None:
    batches: list[int] = []
    dropped = drop("old", batch_size=120, progress=batches.append)
    assert (dropped.vectors, dropped.indexes) == (300, [index_name(pg, "old")])
    assert batches == [120, 120, 60]
    assert_old_is_gone(pg, dropping)
    with pytest.raises(UnknownModel, match="There are: new"):
        drop("old")
    # The name is free for another dimension.
    upsert(pg, "1", [1.0, 2.0], "old")


def test_a_dry_run_deletes_nothing(pg: psycopg.Connection, dropping: Vectors) -> None:
    out, _ = run("drop", "old", "--dry-run")
    assert out.startswith(f"Would drop old: 300 vectors, {index_name(pg, 'old')}.")
    assert rows_of(pg, "old") == 300
    assert status("old").index_method == "hnsw"
    with pytest.raises(CommandError, match="is the default"):
        run("drop", "new", "--dry-run")


def test_the_name_has_to_be_typed(
    pg: psycopg.Connection, dropping: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def type_in(answer: str) -> None:
        monkeypatch.setattr("builtins.input", lambda prompt: [asked.append(prompt), answer][1])

    type_in("yes")
    with pytest.raises(CommandError, match='"yes" is not "old"'):
        run("drop", "old")
    assert "300 vectors" in asked[0]
    assert rows_of(pg, "old") == 300
    type_in("old")
    run("drop", "old")
    assert_old_is_gone(pg, dropping)


def test_the_only_model_cannot_be_dropped(pg: psycopg.Connection) -> None:
    store(clustered(1, 3, 4), "only")
    with pytest.raises(CommandError, match="is the only one"):
        run("drop", "only", "--noinput")
    assert rows_of(pg, "only") == 3


class Killed(BaseException):
    """What ends the process, as far as the database sees."""


def test_an_interrupted_drop_is_finished_by_the_next(
    pg: psycopg.Connection, dropping: Vectors, two_models: tuple[Vectors, Vectors]
) -> None:
    old, _ = two_models

    def kill(deleted: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        drop("old", batch_size=100, progress=kill)
    assert rows_of(pg, "old") == 200
    # What is left is found without the index.
    assert len(nearest(pg, old[3], "old")) == 10
    assert status("old").index_method == "exact"
    assert drop("old").vectors == 200
    assert_old_is_gone(pg, dropping)


def test_ctrl_c_says_how_to_go_on(
    pg: psycopg.Connection, dropping: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cartrita_search.ops.embedding_models.drop", interrupt)
    with pytest.raises(CommandError, match="run this again to finish") as interrupted:
        run("drop", "old", "--noinput")
    assert interrupted.value.returncode == 130


def blocked_by(pg: psycopg.Connection, holder: psycopg.Connection) -> int:
    """The backend that comes to wait for the holder's locks or snapshot."""
    pid = None
    while pid is None:
        pid = scalar(
            pg,
            "SELECT min(pid) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))",
            [holder.info.backend_pid],
        )
    return int(pid)


def test_a_drop_cut_off_while_it_waits_for_the_index_is_finished_by_the_next(
    in_thread: Callable[..., Any],
    manage: Manage,
    pg: psycopg.Connection,
    connect: Connect,
    dropping: Vectors,
) -> None:
    reader = connect(autocommit=False)
    nearest(reader, dropping[0])  # holds the table, and so its indexes
    first = in_thread(manage, "embedding_models", "drop", "old", "--noinput")
    pg.execute("SELECT pg_terminate_backend(%s)", [blocked_by(pg, reader)])
    assert first.result(timeout=60).returncode == 1
    assert rows_of(pg, "old") == 300
    assert index_name(pg, "old") not in vector_indexes(pg)  # invalid, but there
    reader.commit()

    second = manage("embedding_models", "drop", "old", "--noinput")
    assert (second.returncode, index_name(pg, "old") in second.stdout) == (0, True)
    assert_old_is_gone(pg, dropping)
    assert scalar(pg, "SELECT to_regclass(%s)", [index_name(pg, "old")]) is None


def test_two_drops_at_once_both_end(
    in_thread: Callable[..., Any], pg: psycopg.Connection, connect: Connect, dropping: Vectors
) -> None:
    reader = connect(autocommit=False)
    nearest(reader, dropping[0])
    first = in_thread(drop, "old", batch_size=10)
    wait_until_blocked(pg, blocked_by(pg, reader))
    second = in_thread(drop, "old", batch_size=10)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE %s"
    while scalar(pg, waiting, ["DROP INDEX%"]) < 2:
        pass
    reader.commit()
    ended = [future.result(timeout=60) for future in (first, second)]
    assert sum(dropped.vectors for dropped in ended) == 300
    assert_old_is_gone(pg, dropping)


def test_a_model_that_becomes_the_default_meanwhile_stays(
    pg: psycopg.Connection, dropping: Vectors
) -> None:
    with pytest.raises(InvalidArgument, match="became so meanwhile"):
        drop("old", batch_size=100, progress=lambda deleted: make_default("old"))
    assert rows_of(pg, "old") == 200
    assert status("old").is_default


def test_an_index_made_meanwhile_goes_too(pg: psycopg.Connection, dropping: Vectors) -> None:
    reports: list[str] = []
    drop("old", batch_size=200, progress=lambda deleted: reports.append(rebuild(pg, "old")))
    assert "HNSW" in reports[0]
    assert_old_is_gone(pg, dropping)


def test_a_rebuild_in_progress_is_not_disturbed(
    pg: psycopg.Connection, connect: Connect, dropping: Vectors
) -> None:
    builder = connect(autocommit=False)
    rebuild(builder, "old")
    with pytest.raises(RebuildInProgress, match="again when it has finished"):
        drop("old")
    builder.rollback()
    assert rows_of(pg, "old") == 300
    assert status("old").index_method == "hnsw"
    drop("old")
    assert_old_is_gone(pg, dropping)


def test_writers_under_the_model_are_waited_for(
    in_thread: Callable[..., Any], pg: psycopg.Connection, connect: Connect, dropping: Vectors
) -> None:
    drop_index = "DROP INDEX " + index_name(pg, "old")  # not what is waited for here
    pg.execute(drop_index.encode())
    writer = connect(autocommit=False)
    writer.execute(
        "UPDATE embeddings SET metadata = '{}' WHERE embedding_model = 'old' AND source_id = '7'"
    )
    writer.execute(
        "INSERT INTO embeddings (document_id, embedding_model, embedding) "
        "SELECT d.id, 'third', '[1,2]' FROM search_documents AS d, "
        "register_embedding_model('third', 2) WHERE d.source_id = '7'"
    )
    dropped = in_thread(drop, "old")
    wait_until_blocked(pg, blocked_by(pg, writer))
    assert rows_of(pg, "old") == 1  # all that nobody held
    writer.rollback()
    assert dropped.result(timeout=60).vectors == 300
    assert_old_is_gone(pg, dropping)


# --- From one model to another ------------------------------------------------


def test_moving_to_another_model_without_downtime(
    in_thread: Callable[..., Any], pg: psycopg.Connection, connect: Connect
) -> None:
    old, new = clustered(1, 300, 32), clustered(2, 300, 16)
    store(old, "old")
    rebuild(pg, "old")
    application = connect(options="-c lock_timeout=2s")

    def served_by(vectors: Vectors) -> bool:
        """Whether a search that names no model is answered, in full, from these."""
        return nearest(application, vectors[3]) == truly_nearest(vectors, vectors[3])

    # Embed under the new one, and build its index.
    for first in range(0, 300, 100):
        embed(new[first : first + 100], "new", first)
        assert served_by(old)
    assert (status("new").missing, status("new").vectors) == (0, 300)
    builder = connect(autocommit=False)
    rebuild(builder, "new")
    assert served_by(old)
    builder.commit()
    assert status("new").shortcomings == []
    # Both can be compared before anything depends on it.
    assert nearest(application, new[3], "new") == truly_nearest(new, new[3])
    assert served_by(old)

    # Switch.
    with transaction.atomic():
        run("default", "new")
        assert served_by(old)
    assert served_by(new)
    assert nearest(application, old[3], "old") == truly_nearest(old, old[3])

    # Drop, while somebody still searches by the old index.
    reader = connect(autocommit=False)
    nearest(reader, old[3], "old")
    dropped = in_thread(run, "drop", "old", "--noinput")
    blocked_by(pg, reader)
    assert served_by(new)
    reader.commit()
    assert dropped.result(timeout=60)[0].startswith("Dropped old: 300 vectors")
    assert served_by(new)
    assert_old_is_gone(pg, new)
