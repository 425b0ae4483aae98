"""Embedding models: storages of every dimension, the default, moving over, dropping."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from io import StringIO
from typing import Any

import numpy as np
import psycopg
import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from psycopg import sql

from cartrita_search.errors import InvalidArgument, RebuildInProgress, UnknownModel
from cartrita_search.ingest import Document, DocumentVector, upsert_documents, upsert_embeddings
from cartrita_search.ops.embedding_models import drop, make_default, status
from cartrita_search.ops.embedding_models import rebuild as rebuild_index
from tests.conftest import Connect, Manage
from tests.postgres import (
    index_name,
    indexes_used,
    prefer_vector_index,
    scalar,
    upsert,
    vector_indexes,
    vector_text,
)

pytestmark = [pytest.mark.usefixtures("clean_tables"), pytest.mark.django_db(transaction=True)]

Vectors = np.ndarray[Any, np.dtype[np.float32]]


def clustered(seed: int, rows: int, dimensions: int) -> Vectors:
    """Unit vectors about a centre for each 300, most of whose spread is in 128 directions.

    Texts are like that: the nearest is well known, and the tenth beside hundreds of
    others not much farther. One bit a component and no more candidates than results
    would find 87 of 100 in 4,001 dimensions.
    """
    generator = np.random.default_rng(seed)
    normal = partial(generator.standard_normal, dtype=np.float32)
    centres = normal((max(1, rows // 300), 128))
    latent = np.resize(centres, (rows, 128)) + 0.7 * normal((rows, 128))
    vectors = latent @ normal((128, dimensions)) / math.sqrt(128)
    vectors += 0.3 * normal((rows, dimensions))
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


def blocked_by(pg: psycopg.Connection, pid: int) -> int:
    """The backend that comes to wait for that one."""
    waiting = None
    while waiting is None:
        waiting = scalar(
            pg,
            "SELECT min(pid) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))",
            [pid],
        )
    return int(waiting)


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
        (16_000, "bit", "bit", 1000),
    ],
)
def test_each_storage_finds_what_the_exact_scan_finds(
    pg: psycopg.Connection, dimensions: int, preferred: str, storage: str, rows: int
) -> None:
    both = clustered(dimensions, rows + 30, dimensions)
    # The last ones are asked for, not stored.
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
    assert out.endswith(
        "serves until it is rebuilt: manage.py rebuild_vector_indexes --model old\n"
    )
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
    pg.execute("DELETE FROM embeddings WHERE embedding_model = 'new' AND source_id = '5'")
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
    for unreadable in ([], ["storage", "old", "float"]):
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
            blocked_by(pg, cursor.fetchone()[0])
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
    embed(clustered(4, 200, 8), "the third")
    _, err = run("default", "the third")
    assert "100 documents have no vector under the third" in err
    assert "the third has no index" in err
    # The very command that it names mends it.
    call_command(*shlex.split(err.rpartition("manage.py ")[2]), stdout=StringIO())
    assert status("the third").index_method == "hnsw"


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
        def answering(prompt: str) -> str:
            asked.append(prompt)
            return answer

        monkeypatch.setattr("builtins.input", answering)

    type_in("yes")
    with pytest.raises(CommandError, match='"yes" is not "old"'):
        run("drop", "old")
    assert "300 vectors" in asked[0]

    def interrupt(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupt)
    with pytest.raises(CommandError, match="Nothing was changed") as interrupted:
        run("drop", "old")
    assert interrupted.value.returncode == 130
    assert rows_of(pg, "old") == 300
    type_in("old")
    run("drop", "old")
    assert_old_is_gone(pg, dropping)


def test_the_only_model_cannot_be_dropped(pg: psycopg.Connection) -> None:
    store(clustered(1, 3, 4), "only")
    with pytest.raises(CommandError, match="is the only one"):
        run("drop", "only", "--noinput")
    assert rows_of(pg, "only") == 3


def test_only_the_owner_drops_and_rebuilds(pg: psycopg.Connection, dropping: Vectors) -> None:
    before = vector_indexes(pg)
    with connection.cursor() as cursor:
        cursor.execute("SET ROLE pg_read_all_data")
        try:
            for refused in (drop, rebuild_index):
                with pytest.raises(InvalidArgument, match="Only the owner"):
                    refused("old")
        finally:
            cursor.execute("RESET ROLE")
    assert (rows_of(pg, "old"), vector_indexes(pg)) == (300, before)


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
    pg.execute("SELECT pg_terminate_backend(%s)", [blocked_by(pg, reader.info.backend_pid)])
    assert first.result(timeout=60).returncode == 1
    assert rows_of(pg, "old") == 300
    assert index_name(pg, "old") not in vector_indexes(pg)  # invalid, but there
    reader.commit()

    second = manage("embedding_models", "drop", "old", "--noinput")
    assert (second.returncode, index_name(pg, "old") in second.stdout) == (0, True)
    assert_old_is_gone(pg, dropping)
    assert scalar(pg, "SELECT to_regclass(%s)", [index_name(pg, "old")]) is None


def test_two_drops_at_once_leave_nothing(
    in_thread: Callable[..., Any], pg: psycopg.Connection, connect: Connect, dropping: Vectors
) -> None:
    reader = connect(autocommit=False)
    nearest(reader, dropping[0])
    first = in_thread(drop, "old", batch_size=10)
    blocked_by(pg, reader.info.backend_pid)
    second = in_thread(drop, "old", batch_size=10)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE %s"
    while scalar(pg, waiting, ["DROP INDEX%"]) < 2:
        pass
    reader.commit()
    ended = [future.exception(timeout=60) for future in (first, second)]
    # Who comes to the last step while the other is at it leaves it to that one.
    assert None in ended
    assert {type(error) for error in ended} <= {type(None), RebuildInProgress}, ended
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
    # The index's own wait for writers is not what is meant here.
    pg.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(index_name(pg, "old"))))
    writer = connect(autocommit=False)
    writer.execute(
        "UPDATE search_documents SET metadata = '{\"a\": 1}' WHERE source_id IN ('7', '8')"
    )
    dropped = in_thread(drop, "old")
    blocked_by(pg, writer.info.backend_pid)
    assert rows_of(pg, "old") == 2  # all that nobody held
    upsert(writer, "written meanwhile", [1.0] * 32, "old")  # no deadlock
    writer.commit()
    assert dropped.result(timeout=60).vectors == 301
    pg.execute("DELETE FROM search_documents WHERE source_id = 'written meanwhile'")
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
    blocked_by(pg, reader.info.backend_pid)
    assert served_by(new)
    reader.commit()
    assert dropped.result(timeout=60)[0].startswith("Dropped old: 300 vectors")
    assert served_by(new)
    assert_old_is_gone(pg, new)


def test_the_guide_s_commands_work(
    pg: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = (settings.BASE_DIR / "docs" / "models.md").read_text(encoding="utf-8")
    commands = re.findall(r"^ {4,}manage\.py embedding_models (.+)$", guide, re.MULTILINE)
    vectors = clustered(1, 50, 16)
    store(vectors, "old-model")
    for model in ("new-model", "my-model"):
        embed(vectors, model)
    monkeypatch.setattr("builtins.input", lambda prompt: "old-model")
    for command in commands:
        run(*shlex.split(command))
    assert {shlex.split(command)[0] for command in commands} == {
        *("list", "default", "storage", "drop"),
    }
    left = pg.execute("SELECT name, is_default FROM embedding_models ORDER BY name").fetchall()
    assert left == [("my-model", False), ("new-model", True)]
