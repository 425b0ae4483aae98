"""rebuild_vector_indexes, the command: under traffic, killed at every step, refused, resumed."""

from __future__ import annotations

import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from django.conf import settings as django_settings
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from psycopg import sql
from psycopg.rows import dict_row

from cartrita.embedded.postgres import EmbeddedPostgres
from cartrita_search.db import REBUILD_LOCK, advisory_lock
from cartrita_search.errors import InvalidArgument, RebuildFailed, RebuildInProgress
from cartrita_search.ops import vector_indexes
from cartrita_search.ops.vector_indexes import STEPS, Wishes, rebuild, statuses
from cartrita_search.ops.watch import Phase
from tests.conftest import Connect, Manage
from tests.postgres import (
    index_name,
    indexes_used,
    prefer_vector_index,
    scalar,
    upsert,
    wait_until_blocked,
)
from tests.postgres import vector_indexes as valid_indexes
from tests.vectors import DIMENSIONS, load, nearest, random_vector, settings, similar, state

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("clean_tables")]

QUERY = random_vector("query")


def run(*arguments: str) -> tuple[str, str]:
    """The command in this process: what it printed."""
    out, err = StringIO(), StringIO()
    call_command("rebuild_vector_indexes", *arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def fails(*arguments: str) -> CommandError:
    with pytest.raises(CommandError) as raised:
        run(*arguments)
    assert "\n" not in str(raised.value)
    return raised.value


def all_indexes(pg: psycopg.Connection) -> dict[str, bool]:
    """Every vector index, also those that are no use, and whether it is valid."""
    return dict(
        pg.execute(
            """
            SELECT i.relname, x.indisvalid FROM pg_index AS x
            JOIN pg_class AS i ON i.oid = x.indexrelid
            JOIN pg_am AS a ON a.oid = i.relam
            WHERE x.indrelid = 'embeddings'::regclass AND a.amname IN ('hnsw', 'ivfflat')
            """
        ).fetchall()
    )


@pytest.fixture
def indexed(clean_tables: None, pg: psycopg.Connection) -> int:
    """The OID of the index of 300 vectors of "model"."""
    settings(pg, exact_scan_max_rows=10)
    load(pg, 300)
    pg.execute("SELECT rebuild_vector_indexes()")
    return valid_indexes(pg)[index_name(pg)]


@contextmanager
def at(name: str, act: Callable[[], object]) -> Iterator[None]:
    """Act as a rebuild begins that step."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if getattr(record, "step", None) == f"rebuild:{name}":
                act()

    logger, handler = logging.getLogger("cartrita_search.ops.steps"), Handler()
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def assert_served(pg: psycopg.Connection) -> None:
    """A search finds what is there, by a valid index that is the model's."""
    with pg.transaction():
        for name in ("enable_seqscan", "enable_bitmapscan", "enable_sort"):
            pg.execute("SELECT set_config(%s, 'off', true)", [name])
        used = indexes_used(pg, "SELECT * FROM similarity_search(%s)", [QUERY])
        found = similar(pg, QUERY)
    names = {index_name(pg), f"{index_name(pg)}__old"}
    assert used & names, used
    assert used & names <= {name for name, valid in all_indexes(pg).items() if valid}
    assert len({*found} & {*nearest(pg, QUERY)}) >= 9


# --- What it does -----------------------------------------------------------


def test_it_follows_the_plan_and_records_what_it_did(pg: psycopg.Connection) -> None:
    load(pg, 1200, "large")
    load(pg, 30, "small")
    settings(pg, index_memory_budget_mb=64)

    out, _ = run()

    assert list(all_indexes(pg)) == [index_name(pg, "large")]
    large, small = state(pg, "large"), state(pg, "small")
    assert (large["index_method"], large["index_storage"], large["hnsw_m"]) == (
        "hnsw",
        "halfvec",
        16,
    )
    assert (large["indexed_rows"], small["indexed_rows"]) == (1200, 30)
    assert large["measured_recall"] >= 0.95
    assert large["indexed_by"] == small["indexed_by"] is not None
    assert "@" in large["indexed_by"]
    assert (small["index_method"], small["measured_recall"]) == ("exact", 1)
    lines = out.splitlines()
    assert lines[0].startswith("large: HNSW on halfvec, m 16, ef_construction 64; 1200")
    assert (
        f"recall@10 {large['measured_recall']:.3f} at ef_search {large['ef_search']}" in lines[0]
    )
    assert "because: The plan is hnsw on halfvec, and there is no index." in lines[1]
    assert "small: exact scan, no index; 30 vectors." in out
    actions = pg.execute(
        "SELECT subject, outcome, details ->> 'index' FROM operator_actions ORDER BY id"
    ).fetchall()
    assert actions == [
        ("large", "done", "HNSW on halfvec, m 16, ef_construction 64"),
        ("small", "done", "exact scan, no index"),
    ]
    # Statistics of the new index's expression, for the planner.
    assert scalar(
        pg, "SELECT count(*) FROM pg_stats WHERE tablename = %s", [index_name(pg, "large")]
    )


def test_only_the_models_named_are_rebuilt(pg: psycopg.Connection) -> None:
    settings(pg, exact_scan_max_rows=10)
    for model in ("a", "b", "c"):
        load(pg, 30, model)
    run("--model", "a", "--model", "c")
    assert set(all_indexes(pg)) == {index_name(pg, "a"), index_name(pg, "c")}
    assert "no embedding model" in str(fails("--model", "a", "none"))


def test_what_is_asked_for_is_built(pg: psycopg.Connection) -> None:
    load(pg, 60)
    run("--method", "hnsw", "--storage", "vector", "--m", "8", "--ef-construction", "32")
    status = statuses()[0]
    assert (status.index_method, status.index_storage) == ("hnsw", "vector")
    assert status.parameters == "m=8,ef_construction=32"
    run("--method", "ivfflat", "--lists", "3", "--target-recall", "0.5")
    status = statuses()[0]
    assert (status.index_method, status.parameters) == ("ivfflat", "lists=3")
    assert status.target_recall == 0.5
    assert list(all_indexes(pg)) == [index_name(pg)]
    run("--method", "exact")
    assert all_indexes(pg) == {}
    run("--method", "hnsw", "--no-concurrently")
    assert statuses()[0].index_method == "hnsw"
    assert_served(pg)


def test_the_json_says_all_of_it(pg: psycopg.Connection, indexed: int) -> None:
    out, _ = run("--json")
    (outcome,) = json.loads(out)["outcomes"]
    assert (outcome["outcome"], outcome["plan"]["method"]) == ("rebuilt", "hnsw")
    assert outcome["recall"] >= outcome["target"] == 0.95
    (status,) = json.loads(run("--status", "--json")[0])
    assert (status["model"], status["is_valid"], status["needs"]) == ("model", True, [])
    assert status["size_bytes"] > 0
    (plan,) = json.loads(run("--plan", "--json")[0])
    assert plan["row_count"] == 300
    assert plan["reason"]


def test_a_dry_run_changes_nothing(pg: psycopg.Connection, indexed: int) -> None:
    load(pg, 200, user_id=3)
    before = state(pg)
    out, _ = run("--dry-run")
    assert out.startswith("model: would be rebuilt: HNSW")
    assert "because: It was built on 300 vectors; there are 500 now." in out
    out, _ = run("--plan", "--method", "ivfflat")
    assert "IVFFlat on halfvec, 1 lists" in out
    assert (state(pg), valid_indexes(pg)) == (before, {index_name(pg): indexed})
    assert scalar(pg, "SELECT count(*) FROM operator_actions") == 0


def test_progress_names_what_the_server_does(pg: psycopg.Connection) -> None:
    load(pg, 3000)
    shown: list[Phase] = []
    rebuild(wishes=Wishes(method="hnsw", ef_construction=400), progress=shown.append)
    names = {phase.name for phase in shown}
    assert any("loading tuples" in name for name in names), names
    assert {"model: dropping the former index", "vacuuming and analyzing embeddings"} <= names
    loading = [phase for phase in shown if phase.name.endswith("loading tuples")]
    assert all(phase.unit in ("tuples", "blocks") for phase in loading)


# --- Measured before the swap -----------------------------------------------


def test_before_the_swap_searches_use_the_former_index_and_the_measuring_the_new_one(
    pg: psycopg.Connection, connect: Connect, indexed: int
) -> None:
    looked: list[bool] = []
    new, name = f"{index_name(pg)}__new", index_name(pg)
    searcher = connect()

    def look() -> None:
        prefer_vector_index(searcher)
        assert all_indexes(pg) == {name: True, new: True}
        used = indexes_used(searcher, "SELECT * FROM similarity_search(%s)", [QUERY])
        assert used & {name, new} == {name}
        used = indexes_used(
            searcher,
            "SELECT tune_vector_index(p, %s, vector_recall_sample('model', 10)) "
            "FROM vector_index_plan('model') AS p",
            [new],
        )
        assert new in used
        looked.append(True)

    with at("swap", look):
        run()
    assert looked == [True]
    assert indexes_used(searcher, "SELECT * FROM similarity_search(%s)", [QUERY]) >= {name}
    assert valid_indexes(pg)[name] != indexed


def test_the_recall_is_that_of_questions_that_did_not_choose_the_width(
    pg: psycopg.Connection,
) -> None:
    load(pg, 1500)
    run("--method", "ivfflat", "--lists", "25")
    recorded = state(pg)
    sample = scalar(pg, "SELECT vector_recall_sample('model', 100)")
    held_out = json.dumps(sample[1::2])
    recall = "SELECT vector_recall(m, %s) FROM embedding_models AS m"
    assert recorded["measured_recall"] == scalar(pg, recall, [held_out])
    assert recorded["measured_recall"] >= recorded["target_recall"]
    # No narrower one tried would have done for both halves.
    tried = [5]
    while tried[-1] < recorded["probes"]:
        tried.append(min(25, -(-tried[-1] * 3 // 2)))
    assert tried[-1] == recorded["probes"] > 5
    pg.execute("UPDATE embedding_models SET probes = %s", [tried[-2]])
    narrower = [scalar(pg, recall, [json.dumps(sample[n::2])]) for n in (0, 1)]
    assert min(narrower) < recorded["target_recall"]


def test_a_target_that_is_not_reached_leaves_the_former_index_in_place(
    pg: psycopg.Connection, indexed: int
) -> None:
    before = state(pg)
    load(pg, 1500, user_id=3)
    error = fails("--storage", "bit", "--target-recall", "1")
    assert error.returncode == 4
    assert valid_indexes(pg) == {index_name(pg): indexed}
    assert all_indexes(pg) == {index_name(pg): True}
    assert state(pg) == before
    _, outcome = pg.execute("SELECT subject, outcome FROM operator_actions").fetchone() or ("", "")
    assert outcome == "failed"
    assert_served(pg)


def test_the_best_that_was_reached_is_said(pg: psycopg.Connection) -> None:
    load(pg, 1500)
    report = rebuild(wishes=Wishes(method="hnsw", storage="bit", target_recall=1))
    (missed,) = report.missed
    assert missed.recall is not None
    assert missed.recall < 1
    assert f"recall@10 {missed.recall:.3f} at most" in missed.notes[0]
    assert all_indexes(pg) == {}
    assert state(pg)["index_method"] == "exact"


def test_vectors_of_a_large_load_are_found_from_the_swap_on(
    pg: psycopg.Connection, connect: Connect, indexed: int
) -> None:
    load(pg, 50, user_id=7)
    pg.execute("UPDATE embeddings SET segment = 2 WHERE user_id = 7")
    target = pg.execute(
        "SELECT id, embedding::text FROM embeddings WHERE user_id = 7 LIMIT 1"
    ).fetchone()
    assert target is not None
    assert statuses()[0].needs == [
        "50 vectors of a large load are not found before it is rebuilt."
    ]
    seen: list[bool] = []
    with at("swap", lambda: seen.append(target[0] in similar(pg, target[1]))):
        run("--if-needed")
    assert seen == [False]
    assert similar(pg, target[1])[0] == target[0]
    assert state(pg)["visible_segment"] == 2
    assert_served(pg)


def test_a_load_ends_with_it_and_within_a_transaction_with_the_function(
    pg: psycopg.Connection, connect: Connect, indexed: int
) -> None:
    actions = "SELECT count(*) FROM operator_actions WHERE action = 'rebuild'"
    assert vector_indexes.finish_load("model").startswith("model: HNSW on halfvec")
    assert (state(pg)["visible_segment"], scalar(pg, actions)) == (2, 1)
    assert scalar(pg, "SELECT sum(documents) FROM keyword_corpora") == 300
    with transaction.atomic():
        assert "HNSW on halfvec" in vector_indexes.finish_load("model")
        with pytest.raises(InvalidArgument, match="cannot be part of one"):
            rebuild()
    assert (state(pg)["visible_segment"], scalar(pg, actions)) == (3, 1)
    with (
        advisory_lock(connect(application_name="first"), REBUILD_LOCK),
        pytest.raises(RebuildInProgress, match="first"),
    ):
        vector_indexes.finish_load("model")
    # The target that cannot be reached: the load is found all the same.
    load(pg, 1500, user_id=3)
    pg.execute("UPDATE embedding_models SET preferred_storage = 'bit', target_recall = 1")
    assert "NOT reached" in vector_indexes.finish_load("model")
    assert state(pg)["index_storage"] == "bit"


# --- Only where needed ------------------------------------------------------


def test_nothing_is_rebuilt_where_nothing_is_due(pg: psycopg.Connection, indexed: int) -> None:
    load(pg, 5, "small")
    pg.execute("UPDATE embedding_models SET measured_recall = 0.96 WHERE name = 'model'")
    assert "model: up to date: HNSW" in run("--if-needed", "--dry-run")[0]
    assert state(pg)["measured_recall"] == 0.96
    out, _ = run("--if-needed")
    assert state(pg)["measured_recall"] > 0.96
    assert "model: up to date: HNSW" in out
    assert "small: up to date: exact scan" in out
    assert valid_indexes(pg) == {index_name(pg): indexed}


REASONS: dict[str, tuple[str, str]] = {
    "missing": ("DROP INDEX {index}", "Its index is missing."),
    "invalid": (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{index}'::regclass",
        "Its index is invalid.",
    ),
    "plan": (
        "UPDATE search_settings SET hnsw_m = 8",
        "The plan has m 8, ef_construction 64; the index has 16, 64.",
    ),
    "storage": (
        "UPDATE embedding_models SET preferred_storage = 'vector'",
        "The plan is hnsw on vector, the index is hnsw on halfvec.",
    ),
    "method": (
        "UPDATE search_settings SET exact_scan_max_rows = 300",
        "The plan is an exact scan, and there is an index (hnsw).",
    ),
    "shrunk": (
        "DELETE FROM search_documents WHERE source_id > 'None/2'",
        "It was built on 300 vectors; there are 113 now.",
    ),
    "target": (
        "UPDATE embedding_models SET target_recall = 0.99, measured_recall = 0.97",
        "Its recall@10 was measured as 0.970, below the target 0.99.",
    ),
    "unmeasured": (
        "UPDATE embedding_models SET measured_recall = NULL",
        "Its recall was never measured.",
    ),
    "dimension": (
        "DROP INDEX {index}; CREATE INDEX {index} ON embeddings "
        "USING hnsw ((subvector(embedding, 1, 8)::halfvec(8)) halfvec_cosine_ops) "
        "WHERE embedding_model = 'model'",
        "Its index was built for 8 dimensions; the model has 32.",
    ),
    "foreign": (
        "DROP INDEX {index}; CREATE INDEX {index} ON embeddings "
        "USING hnsw ((embedding::halfvec(32)) halfvec_cosine_ops) WHERE embedding_model = 'no'",
        "Searches cannot use its index: it was not put in place by a rebuild.",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_a_reason_is_found_said_and_mended(
    pg: psycopg.Connection, indexed: int, name: str
) -> None:
    statement, reason = REASONS[name]
    for part in statement.format(index=index_name(pg)).split(";"):
        pg.execute(part)
    assert statuses()[0].needs == [reason]
    assert reason in run("--status")[0]

    out, _ = run("--if-needed")

    assert f"because: {reason}" in out
    assert statuses()[0].needs == []
    if name != "method":
        assert valid_indexes(pg).keys() == {index_name(pg)}
        assert valid_indexes(pg)[index_name(pg)] != indexed
        assert_served(pg)


def test_dead_rows_are_a_reason_until_they_are_vacuumed(
    pg: psycopg.Connection, indexed: int
) -> None:
    settings(pg, rebuild_growth=9)
    load(pg, 1500, user_id=3)
    pg.execute("ALTER TABLE embeddings SET (autovacuum_enabled = false)")
    try:
        pg.execute("DELETE FROM search_documents WHERE user_id = 3")
        pg.execute("SELECT pg_stat_force_next_flush()")
        (need,) = statuses()[0].needs
        assert re.fullmatch(r"\d\d % of the rows of embeddings are dead\.", need)
        run("--if-needed")
        assert statuses()[0].needs == []
    finally:
        pg.execute("ALTER TABLE embeddings RESET (autovacuum_enabled)")


def test_a_recall_that_has_fallen_since_is_measured(pg: psycopg.Connection) -> None:
    load(pg, 1500)
    run("--method", "ivfflat", "--lists", "25")
    wide = state(pg)["probes"]
    pg.execute("UPDATE embedding_models SET probes = 1")
    assert statuses()[0].needs != []  # the plan is HNSW; asked for is what is there
    before = state(pg)
    out, _ = run("--if-needed", "--method", "ivfflat", "--lists", "25", "--dry-run")
    assert "model: would be rebuilt" in out
    assert "because: Its recall@10 is now 0." in out
    assert state(pg) == before
    out, _ = run("--if-needed", "--method", "ivfflat", "--lists", "25")
    assert "because: Its recall@10 is now 0." in out
    assert state(pg)["probes"] == wide


# --- Few rows, none, one ----------------------------------------------------


def test_no_model_no_row_and_one_row(pg: psycopg.Connection) -> None:
    assert "nothing to index" in run()[0]
    assert "nothing to index" in run("--status")[0]
    pg.execute("SELECT register_embedding_model('empty', 3)")
    upsert(pg, "1", [1.0, 2.0, 3.0], "one")
    out, _ = run()
    assert "empty: exact scan, no index; 0 vectors." in out
    assert "one: exact scan, no index; 1 vectors." in out
    out, _ = run("--method", "ivfflat")
    assert "empty: exact scan" in out
    assert "without vectors there are no lists to find" in out
    assert "one: IVFFlat on halfvec, 1 lists; 1 vectors; recall@10 not measured" in out
    assert "Lists found among 1 vectors will not suit many more" in out
    out, _ = run("--method", "hnsw")
    assert set(all_indexes(pg)) == {index_name(pg, "empty"), index_name(pg, "one")}
    assert scalar(
        pg, "SELECT source_id FROM similarity_search('[1,2,3]', model_name => 'one')"
    ) == ("1")
    assert "no more than there are vectors (1), not 2" in str(
        fails("--model", "one", "--method", "ivfflat", "--lists", "2")
    )


# --- Under traffic ----------------------------------------------------------


@pytest.mark.slow
def test_readers_and_writers_go_on_and_no_search_goes_without_an_index(
    pg: psycopg.Connection, connect: Connect
) -> None:
    load(pg, 2500)
    pg.execute("SELECT rebuild_vector_indexes()")
    done = threading.Event()
    name = index_name(pg)
    counts = {"searches": 0, "writes": 0}
    failures: list[BaseException] = []

    def search(client: psycopg.Connection) -> None:
        try:
            while not done.is_set():
                used = indexes_used(client, "SELECT * FROM similarity_search(%s)", [QUERY])
                assert any(index.startswith(name) for index in used), used
                assert len(similar(client, QUERY)) == 10
                counts["searches"] += 1
        except BaseException as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    def write(client: psycopg.Connection) -> None:
        try:
            while not done.is_set():
                number = counts["writes"] % 50
                upsert(client, str(number), [float(counts["writes"] + 1)] * DIMENSIONS, "model")
                counts["writes"] += 1
        except BaseException as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    threads = [
        threading.Thread(target=search, args=[connect()]),
        threading.Thread(target=write, args=[connect()]),
    ]
    for thread in threads:
        thread.start()
    try:
        for method in ("ivfflat", "hnsw"):  # one way and back
            before = dict(counts)
            run("--method", method)
            assert state(pg)["index_method"] == method
            assert counts["searches"] > before["searches"]
            assert counts["writes"] > before["writes"]
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert all_indexes(pg) == {name: True}
    assert statuses()[0].needs == []
    written = pg.execute("SELECT source_id FROM similarity_search(%s)", [str([1.0] * DIMENSIONS)])
    assert int(written.fetchall()[0][0]) < 50


def test_a_transaction_of_before_the_swap_keeps_the_former_index(
    pg: psycopg.Connection,
    connect: Connect,
    indexed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vector_indexes, "DROP_SECONDS", 0.2)
    reader = connect(autocommit=False)
    reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    held: list[bool] = []

    def hold() -> None:  # after the build, which would wait for it
        held.append(bool(similar(reader, QUERY)))

    with at("swap", hold):
        _, err = run()
    assert held == [True]
    old = f"{index_name(pg)}__old"
    assert f"The index {old} stays for now" in err
    assert str(reader.info.backend_pid) in err
    assert all_indexes(pg) == {index_name(pg): True, old: True}
    for name in ("enable_seqscan", "enable_bitmapscan", "enable_sort"):
        reader.execute("SELECT set_config(%s, 'off', true)", [name])
    assert old in indexes_used(reader, "SELECT * FROM similarity_search(%s)", [QUERY])
    assert fails().returncode == 75  # it is still there
    reader.rollback()
    run("--if-needed")
    assert all_indexes(pg) == {index_name(pg): True}


def test_the_swap_waits_for_no_lock_for_long_and_is_tried_again(
    pg: psycopg.Connection, connect: Connect, indexed: int
) -> None:
    holder = connect(autocommit=False)
    waits: list[str] = []

    def let_go(phase: Phase) -> None:
        if phase.name.endswith("waiting for the lock of the swap"):
            waits.append(phase.name)
            holder.rollback()

    with at("swap", lambda: holder.execute("SELECT FROM embedding_models FOR UPDATE")):
        report = rebuild(progress=let_go)
    assert len(waits) == 1
    assert report.outcomes[0].outcome == "rebuilt"
    assert valid_indexes(pg)[index_name(pg)] != indexed


def test_a_swap_whose_locks_cannot_be_had_is_for_the_next_run(
    pg: psycopg.Connection,
    connect: Connect,
    indexed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vector_indexes, "SWAP_LOCK_TIMEOUT", "10ms")
    monkeypatch.setattr(vector_indexes, "SWAP_TRIES", 2)
    holder = connect(autocommit=False)
    with at("swap", lambda: holder.execute("SELECT FROM embedding_models FOR UPDATE")):
        error = fails()
    assert error.returncode == 75
    assert "is built, but somebody's transaction" in str(error)
    assert valid_indexes(pg)[index_name(pg)] == indexed
    holder.rollback()
    (outcome,) = rebuild().outcomes
    assert outcome.resumed
    assert list(all_indexes(pg)) == [index_name(pg)]


def test_who_holds_the_lock_that_a_build_waits_for_is_said(
    pg: psycopg.Connection, connect: Connect, indexed: int
) -> None:
    holder = connect(autocommit=False)
    waits: list[str] = []

    def let_go(phase: Phase) -> None:
        if "waiting for a lock" in phase.name:
            waits.append(phase.name)
            holder.rollback()

    lock = "LOCK TABLE embeddings IN SHARE UPDATE EXCLUSIVE MODE"
    with at("build", lambda: holder.execute(lock)):
        report = rebuild(progress=let_go)
    assert waits == [f"model: waiting for a lock (pid {holder.info.backend_pid})"]
    assert report.outcomes[0].outcome == "rebuilt"


# --- Two at once ------------------------------------------------------------


def test_the_second_says_who_is_at_it_and_exits_75(
    pg: psycopg.Connection, connect: Connect, indexed: int
) -> None:
    first = connect(application_name="cartrita rebuild")
    with advisory_lock(first, REBUILD_LOCK):
        error = fails("--wait", "0")
        assert error.returncode == 75
        assert f"pid {first.info.backend_pid}" in str(error)
        assert valid_indexes(pg) == {index_name(pg): indexed}
    # As much as the SQL function does.
    with first.transaction():
        first.execute("SELECT pg_advisory_xact_lock(%s)", [REBUILD_LOCK])
        assert fails("--wait", "0").returncode == 75
    seen: list[bool] = []
    with at("build", lambda: seen.append(_refused_by_function(pg))):
        run()
    assert seen == [True]


def test_the_second_waits_for_the_first_and_goes_on(
    pg: psycopg.Connection, connect: Connect, indexed: int
) -> None:
    first = connect(application_name="the first")
    first.execute("SELECT pg_advisory_lock(%s)", [REBUILD_LOCK])
    said: list[str] = []

    def let_it_end(line: str) -> None:
        said.append(line)
        first.execute("SELECT pg_advisory_unlock(%s)", [REBUILD_LOCK])

    report = rebuild(wait=60, say=let_it_end)
    assert len(said) == 1
    assert f"Waiting up to 60 s for pid {first.info.backend_pid}" in said[0]
    assert "the first" in said[0]
    assert report.outcomes[0].outcome == "rebuilt"
    assert valid_indexes(pg)[index_name(pg)] != indexed


def _refused_by_function(pg: psycopg.Connection) -> bool:
    with pytest.raises(psycopg.Error) as raised:
        pg.execute("SELECT rebuild_vector_indexes()")
    return raised.value.sqlstate == "SE010"


@contextmanager
def a_build_that_waits(
    pg: psycopg.Connection, connect: Connect, writer: psycopg.Connection
) -> Iterator[tuple[psycopg.Connection, threading.Thread]]:
    """Somebody builds <index>__new by hand, and waits for a writer's transaction to end."""
    upsert(writer, "held", [1.0] * DIMENSIONS, "model")
    builder = connect()
    statement = scalar(
        pg,
        "SELECT vector_index_sql(p, vector_index_name('model') || '__new', true, true) "
        "FROM vector_index_plan('model') AS p",
    )
    thread = threading.Thread(target=lambda: builder.execute(statement))
    thread.start()
    wait_until_blocked(pg, builder.info.backend_pid)
    yield builder, thread
    thread.join(30)


def test_a_build_that_still_runs_is_waited_for_and_put_in_place(
    pg: psycopg.Connection, connect: Connect, indexed: int
) -> None:
    writer = connect(autocommit=False)
    with a_build_that_waits(pg, connect, writer) as (builder, thread):
        error = fails("--wait", "0")
        assert error.returncode == 75
        assert f"pid {builder.info.backend_pid}" in str(error)
        assert thread.is_alive()
        said: list[str] = []

        def let_it_end(line: str) -> None:
            said.append(line)
            writer.commit()

        report = rebuild(wait=60, say=let_it_end)
    assert len(said) == 1
    assert "still building" in said[0]
    assert report.outcomes[0].resumed
    assert all_indexes(pg) == {index_name(pg): True}
    assert_served(pg)


# --- Killed -----------------------------------------------------------------


def killed(manage: Manage, name: str, by: str = "SIGKILL") -> subprocess.CompletedProcess[str]:
    return manage(
        "rebuild_vector_indexes",
        DJANGO_SETTINGS_MODULE="tests.crash_settings",
        CRASH_AT=f"rebuild:{name}",
        CRASH_SIGNAL=by,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_killed_at_any_step_searches_go_on_and_the_next_run_converges(
    pg: psycopg.Connection, manage: Manage, indexed: int, name: str
) -> None:
    assert killed(manage, name).returncode == -signal.SIGKILL
    assert_served(pg)
    left = set(all_indexes(pg)) - {index_name(pg)}
    expected = {"verify": "__new", "tune": "__new", "swap": "__new", "drop": "__old"}
    assert left == {f"{index_name(pg)}{expected[name]}"} if name in expected else not left

    out, _ = run()

    assert "model: HNSW" in out
    assert all_indexes(pg) == {index_name(pg): True}
    assert valid_indexes(pg)[index_name(pg)] != indexed
    assert statuses()[0].needs == []
    assert_served(pg)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("name", STEPS)
def test_a_signal_ends_it_with_nothing_left_behind(
    pg: psycopg.Connection, manage: Manage, indexed: int, name: str, by: str
) -> None:
    done = killed(manage, name, by)
    assert all_indexes(pg) == {index_name(pg): True}
    assert_served(pg)
    if STEPS.index(name) >= STEPS.index("drop"):  # what was swapped in is finished
        assert done.returncode == 0, done.stderr
        assert valid_indexes(pg)[index_name(pg)] != indexed
    else:
        assert done.returncode == 130, done.stderr
        assert "Interrupted" in done.stderr
        assert valid_indexes(pg)[index_name(pg)] == indexed


def test_a_signal_cancels_a_build_that_runs(
    pg: psycopg.Connection,
    connect: Connect,
    indexed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vector_indexes, "INTERRUPTED_SECONDS", 0.1)
    stop = threading.Event()
    said: list[str] = []

    def interrupt(phase: Phase) -> None:
        if "waiting for writers" in phase.name:
            assert phase.name.endswith(f"(pid {writer.info.backend_pid})")
            stop.set()

    writer = connect(autocommit=False)
    upsert(writer, "held", [1.0] * DIMENSIONS, "model")  # the build waits for its end
    report = rebuild(stop=stop, progress=interrupt, say=said.append)
    assert report.interrupted
    assert report.outcomes == []
    # What it had begun cannot be dropped at once for the same transaction.
    new = f"{index_name(pg)}__new"
    assert f"The index {new} stays for now" in said[0]
    assert all_indexes(pg) == {index_name(pg): True, new: False}
    writer.rollback()
    assert valid_indexes(pg) == {index_name(pg): indexed}
    run("--if-needed")
    assert all_indexes(pg) == {index_name(pg): True}
    assert valid_indexes(pg) == {index_name(pg): indexed}


@pytest.mark.slow
def test_killed_while_the_server_builds_the_server_notices_and_the_next_run_waits(
    pg: psycopg.Connection,
    connect: Connect,
    manage_environment: dict[str, str],
    request: pytest.FixtureRequest,
    indexed: int,
) -> None:
    # Asked of each server here; sessions of one that looks less often notice later.
    look_every = sql.SQL("ALTER ROLE postgres SET client_connection_check_interval = {}")
    pg.execute(look_every.format("1s"))
    request.addfinalizer(
        lambda: connect().execute("ALTER ROLE postgres RESET client_connection_check_interval")
    )
    writer = connect(autocommit=False)
    upsert(writer, "held", [1.0] * DIMENSIONS, "model")  # the build waits for its end
    process = subprocess.Popen(
        [sys.executable, "manage.py", "rebuild_vector_indexes"],
        cwd=django_settings.BASE_DIR,
        env=manage_environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    building = "SELECT pid FROM pg_stat_progress_create_index WHERE lockers_total > 0"
    deadline = time.monotonic() + 30
    while not (row := pg.execute(building).fetchone()):
        assert time.monotonic() < deadline
    process.kill()
    process.wait()
    assert pg.execute(building).fetchone() == row  # the server has not noticed yet

    said: list[str] = []

    def let_it_end(line: str) -> None:
        said.append(line)

    # Its build is cancelled for the client that is gone, not for the writer's end.
    with at("check", writer.rollback):
        report = rebuild(wait=60, say=let_it_end)
    assert [f"pid {row[0]}" in line for line in said] == [True]
    assert report.outcomes[0].outcome == "rebuilt"
    assert not report.outcomes[0].resumed
    assert all_indexes(pg) == {index_name(pg): True}
    assert_served(pg)


def test_a_lost_connection_is_said_and_the_next_run_converges(
    pg: psycopg.Connection, indexed: int
) -> None:
    def terminate() -> None:
        pg.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE application_name = 'cartrita rebuild'"
        )

    with at("tune", terminate), pytest.raises(RebuildFailed, match=r"connection .* was lost"):
        rebuild()
    assert all_indexes(pg) == {index_name(pg): True, f"{index_name(pg)}__new": True}
    assert_served(pg)
    report = rebuild(["model"], if_needed=False)
    assert report.outcomes[0].resumed
    assert all_indexes(pg) == {index_name(pg): True}


def test_django_s_own_connection_may_be_gone_when_the_work_is_done(
    pg: psycopg.Connection, indexed: int
) -> None:
    """It is idle for as long as a build takes, and servers and firewalls end idle ones."""

    def terminate() -> None:
        connection.ensure_connection()
        pid = connection.connection.info.backend_pid
        assert scalar(pg, "SELECT pg_terminate_backend(%s, 10000)", [pid])

    with at("record", terminate):
        report = rebuild()
    assert report.outcomes[0].outcome == "rebuilt"
    assert scalar(pg, "SELECT outcome FROM operator_actions") == "done"


@pytest.mark.slow
def test_a_server_that_restarts_in_the_middle(tmp_path: Path, manage: Manage) -> None:
    """On a server of its own: nobody else's sessions are lost."""
    folder = Path("/tmp") / f"cartrita-restart-{tmp_path.parent.name}"  # a socket's path is short
    server = EmbeddedPostgres(folder, {"autovacuum": "off"})
    environment = {"DATABASE_URL": "", "CARTRITA_EMBEDDED_DIR": str(folder)}
    try:
        server.start()
        assert manage("migrate", "--verbosity=0", **environment).returncode == 0
        with server.connect("cartrita") as own:
            settings(own, exact_scan_max_rows=10)
            load(own, 300)
            own.execute("SELECT rebuild_vector_indexes()")
        process = manage(
            "rebuild_vector_indexes",
            **environment,
            DJANGO_SETTINGS_MODULE="tests.crash_settings",
            CRASH_AT="rebuild:tune",
        )
        assert process.returncode == -signal.SIGKILL
        server.stop()
        server.start()
        with server.connect("cartrita") as own:
            assert_served(own)
            done = manage("rebuild_vector_indexes", **environment)
            assert done.returncode == 0, done.stderr
            assert all_indexes(own) == {index_name(own): True}
            assert_served(own)
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


# --- Refused ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"maintenance_work_mem": "2000"}, "no amount of memory"),
        ({"target_recall": 1.5}, "at most 1"),
        ({"parallel_workers": -1}, "0 to 1024"),
        ({"m": 1 << 31}, "m cannot be 2147483648"),
        ({"method": "hnsw", "lists": 10}, "lists is no parameter of the method hnsw"),
        ({"method": "ivfflat", "m": 10}, "m is no parameter of the method ivfflat"),
    ],
)
def test_a_wish_that_cannot_be(wish: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Wishes(**wish)


def test_what_cannot_be_built_is_refused_before_anything_changes(
    pg: psycopg.Connection, indexed: int
) -> None:
    pg.execute("SELECT register_embedding_model('wide', 3000)")
    before = state(pg)
    error = fails("--storage", "vector", "--method", "hnsw")
    assert error.returncode == 1
    assert "up to 2000 dimensions" in str(error)
    assert "ef_construction" in str(fails("--m", "50", "--ef-construction", "20"))
    error = fails("--maintenance-work-mem", "1kB")
    assert "outside the valid range" in str(error)
    assert "Nothing was changed" in str(error)
    assert (valid_indexes(pg), state(pg)) == ({index_name(pg): indexed}, before)


def disk(monkeypatch: pytest.MonkeyPatch, shared_memory: int, elsewhere: int) -> None:
    monkeypatch.setattr(
        vector_indexes.shutil,  # type: ignore[attr-defined]
        "disk_usage",
        lambda path: SimpleNamespace(free=shared_memory if str(path) == "/dev/shm" else elsewhere),
    )


def test_too_little_disk_is_refused_with_the_figures(
    pg: psycopg.Connection, indexed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk(monkeypatch, shared_memory=1 << 40, elsewhere=1 << 16)
    error = fails()
    assert "will take about" in str(error)
    assert "64.0\N{NO-BREAK SPACE}KB free" in str(error)
    assert valid_indexes(pg) == {index_name(pg): indexed}


def test_too_little_shared_memory_builds_without_workers_or_refuses_them(
    pg: psycopg.Connection, indexed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk(monkeypatch, shared_memory=1 << 26, elsewhere=1 << 40)
    _, err = run()
    assert "/dev/shm has 64.0" in err
    assert "Building without workers" in err
    assert "--parallel-workers 0" in str(fails("--parallel-workers", "2"))
    assert "shm" not in run("--parallel-workers", "0")[1]
    assert "shm" not in run("--maintenance-work-mem", "32MB")[1]


def test_a_graph_beyond_the_memory_is_said_with_the_figure(
    pg: psycopg.Connection,
) -> None:
    load(pg, 2000)
    _, err = run("--method", "hnsw", "--maintenance-work-mem", "1MB", "--dry-run")
    assert "more than maintenance_work_mem (1.0\N{NO-BREAK SPACE}MB)" in err
    assert "say --maintenance-work-mem" in err
    assert "IVFFlat" in run("--maintenance-work-mem", "1MB", "--plan")[0]
    assert "HNSW" in run("--maintenance-work-mem", "64MB", "--plan")[0]


def test_a_server_elsewhere_does_not_show_its_disk(
    pg: psycopg.Connection, indexed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psycopg.ConnectionInfo, "host", property(lambda _: "db.example.org"))
    _, err = run("--dry-run")
    assert "free disk space cannot be seen from here" in err


def test_only_the_owner_rebuilds(pg: psycopg.Connection, indexed: int) -> None:
    pg.execute("CREATE ROLE reader")
    pg.execute("GRANT SELECT ON embedding_models, embeddings TO reader")
    try:
        with connection.cursor() as cursor:
            cursor.execute("SET ROLE reader")
            try:
                with pytest.raises(InvalidArgument, match="Only the owner"):
                    rebuild()
            finally:
                cursor.execute("RESET ROLE")
    finally:
        pg.execute("DROP OWNED BY reader")
        pg.execute("DROP ROLE reader")


def test_an_old_pgvector_is_told_at_the_start(pg: psycopg.Connection, indexed: int) -> None:
    version = scalar(pg, "SELECT extversion FROM pg_extension WHERE extname = 'vector'")
    change = "UPDATE pg_extension SET extversion = %s WHERE extname = 'vector'"
    pg.execute(change, ["0.7.4"])
    try:
        error = fails()
    finally:
        pg.execute(change, [version])
    assert "pgvector 0.7.4 is too old; 0.8.0 or newer is needed" in str(error)
    assert valid_indexes(pg) == {index_name(pg): indexed}


def test_the_status_in_sql(pg: psycopg.Connection, indexed: int) -> None:
    load(pg, 10, user_id=5)
    with pg.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute("SELECT * FROM vector_index_status('model')").fetchone()
    assert row is not None
    assert (row["index_method"], row["index_storage"]) == ("hnsw", "halfvec")
    assert row["parameters"] == "m=16,ef_construction=64"
    assert (row["is_valid"], row["row_count"], row["rows_since_build"]) == (True, 310, 10)
    assert row["size_bytes"] == scalar(
        pg, sql.SQL("SELECT pg_relation_size({})").format(sql.Literal(index_name(pg)))
    )
    assert row["indexed_by"] == "postgres"
    assert row["ef_search"] == state(pg)["ef_search"]
