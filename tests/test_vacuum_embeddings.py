"""vacuum_embeddings: dead rows reclaimed, sizes before and after, locks told."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command

from cartrita_search.db import REBUILD_LOCK, advisory_lock
from cartrita_search.ops.vacuum import TABLES
from tests.conftest import Connect, Manage
from tests.postgres import scalar, upsert
from tests.vectors import DIMENSIONS, load

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("clean_tables")]


def run(*arguments: str) -> tuple[str, str]:
    out, err = StringIO(), StringIO()
    call_command("vacuum_embeddings", *arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


@pytest.fixture
def half_dead(clean_tables: None, pg: psycopg.Connection) -> None:
    """2,000 rows, half of them deleted."""
    load(pg, 2000)
    pg.execute("DELETE FROM search_documents WHERE source_id > 'None/5'")
    pg.execute("SELECT pg_stat_force_next_flush()")


def dead(pg: psycopg.Connection) -> int:
    return int(scalar(pg, "SELECT pg_stat_get_dead_tuples('embeddings'::regclass)"))


@pytest.mark.usefixtures("half_dead")
def test_dead_rows_are_reclaimed_and_both_states_are_said(pg: psycopg.Connection) -> None:
    (planned,) = [
        table
        for table in json.loads(run("--dry-run", "--json")[0])["tables"]
        if table["table"] == "embeddings"
    ]
    assert (planned["outcome"], planned["after"]) == ("planned", None)
    assert planned["before"]["dead"] == dead(pg) > 0

    out, _ = run("--json")

    tables = {table["table"]: table for table in json.loads(out)["tables"]}
    assert tuple(tables) == TABLES
    done = tables["embeddings"]
    assert done["outcome"] == "vacuumed"
    assert done["before"]["dead"] > 0 == done["after"]["dead"] == dead(pg)
    assert done["after"]["table_bytes"] > 0
    assert pg.execute("SELECT action, outcome FROM operator_actions").fetchall() == [
        ("vacuum", "done")
    ]
    table, _ = run()
    assert "embeddings" in table
    assert "vacuumed" in table


@pytest.mark.usefixtures("half_dead")
def test_full_says_what_it_locks_asks_and_gives_the_space_back(
    pg: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = "SELECT pg_table_size('embeddings')"
    before = scalar(pg, size)
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return "no"

    monkeypatch.setattr("builtins.input", answer)
    with pytest.raises(CommandError, match="Nothing was changed"):
        run("--full")
    assert len(asked) == 1
    assert scalar(pg, size) == before

    out, err = run("--full", "--noinput", "--json")
    assert "locks search_documents, embeddings" in err
    assert "against searches and writers, for very roughly" in err
    assert {table["outcome"] for table in json.loads(out)["tables"]} == {"rewritten"}
    assert scalar(pg, size) < before


def test_nobody_there_to_answer(manage: Manage) -> None:
    done = manage("vacuum_embeddings", "--full")
    assert done.returncode == 1
    assert "say --noinput" in done.stderr


def test_full_where_nothing_is_migrated(manage: Manage, database: dict[str, Any]) -> None:
    url = "postgres://{user}@:{port}/postgres?host={host}".format(**database)
    done = manage("vacuum_embeddings", "--full", DATABASE_URL=url)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].endswith("Run: manage.py migrate")


# Below a millisecond is not "no limit".
@pytest.mark.parametrize("seconds", ["0.1", "0.0001"])
def test_a_table_in_use_is_left_and_the_others_are_done(
    pg: psycopg.Connection, connect: Connect, seconds: str
) -> None:
    writer = connect(autocommit=False)
    upsert(pg, "1", [1.0] * DIMENSIONS, "model")
    writer.execute("SELECT count(*) FROM embeddings")
    with pytest.raises(CommandError, match=r"In use .*: embeddings") as raised:
        run("--full", "--noinput", "--lock-timeout", seconds)
    assert raised.value.returncode == 75
    writer.rollback()
    assert "rewritten" in run("--full", "--noinput")[0]


def test_not_while_indexes_are_rebuilt(connect: Connect) -> None:
    with (
        advisory_lock(connect(application_name="cartrita rebuild"), REBUILD_LOCK),
        pytest.raises(CommandError, match="cartrita rebuild") as raised,
    ):
        run("--lock-timeout", "0.1")
    assert raised.value.returncode == 75


def test_a_lock_timeout_is_a_time() -> None:
    with pytest.raises(CommandError, match="above 0"):
        run("--lock-timeout", "0")
