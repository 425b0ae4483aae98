"""``migrate`` beside others: locks, poolers, kills, and the record it is held to."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import LazySettings
from django.conf import settings as django_settings
from django.core.management import CommandError, call_command
from django.db import OperationalError, connections, migrations
from django.db.migrations.executor import MigrationExecutor
from psycopg import sql

from cartrita_search.db import MIGRATION_LOCK, advisory_lock
from cartrita_search.errors import LockHeld
from cartrita_search.management.commands.migrate import Command
from cartrita_search.migration_operations import migration_checksum
from cartrita_search.ops import migration_guard
from cartrita_search.ops.dumps import read_manifest
from cartrita_search.ops.migration_guard import STEPS, records
from tests.catalog import read_catalog
from tests.conftest import Manage
from tests.in_process import database_of, run
from tests.pgbouncer import pgbouncer
from tests.postgres import scalar
from tests.test_migrations import STEPS as VERSIONS
from tests.test_migrations import temporary_database

pytestmark = pytest.mark.usefixtures("other_databases")

APP = "cartrita_search"
#: It builds indexes concurrently, so it is not one transaction.
CONCURRENT = "0012_migration_guard"
BEFORE_CONCURRENT = "0011_concurrent_rebuild"
INDEX = "search_documents_tags"

#: As 2.0.0a1 recorded them: what is drift and what is not must never change for these.
RELEASED = {
    VERSIONS[0]: "93344bdae292a0ba03369c2c5c9a2586750e9dae119a7e642b64fb9cc8246783",
    VERSIONS[1]: "345d793a77cb7d73c85d649b13138059c864796fcadc39d07765266aa9c658d2",
    VERSIONS[2]: "d02d3656102aa9411cda98fcc2e9d40063a158a2c0c163aabe1eecdcb3d6d592",
    VERSIONS[3]: "160ccc535a2c323ac97043a633c5d8f53de976a0c3d536ce76299cbae765fb3f",
}

Parameters = dict[str, Any]


@pytest.fixture(scope="module")
def template(database: Parameters, django_db_blocker: Any) -> Iterator[str]:
    """A database with this app's migrations, copied by every test that begins so."""
    name = "test_migrate_template"
    with (
        psycopg.connect(**database, autocommit=True) as pg,
        temporary_database(pg, name, "template0"),
    ):
        with django_db_blocker.unblock():
            run(database | {"dbname": name}, "migrate", APP)
        yield name


@pytest.fixture
def migrated(database: Parameters, pg: psycopg.Connection, template: str) -> Iterator[Parameters]:
    with temporary_database(pg, "test_migrate", template):
        yield database | {"dbname": "test_migrate"}


@pytest.fixture
def empty(database: Parameters, pg: psycopg.Connection) -> Iterator[Parameters]:
    with temporary_database(pg, "test_migrate", "template0"):
        yield database | {"dbname": "test_migrate"}


@contextmanager
def connected(parameters: Parameters, **options: Any) -> Iterator[psycopg.Connection]:
    with psycopg.connect(**parameters | {"autocommit": True} | options) as connection:
        yield connection


def url(parameters: Parameters) -> str:
    return "postgres://{user}@:{port}/{dbname}?host={host}".format(**parameters)


class Listener(StringIO):
    """Standard output that tells when something was said."""

    def __init__(self, awaited: str) -> None:
        super().__init__()
        self.awaited = awaited
        self.heard = threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        if self.awaited in self.getvalue():
            self.heard.set()
        return written


@contextmanager
def migrating(
    parameters: Parameters, *arguments: str, awaited: str, **options: Any
) -> Iterator[Listener]:
    """``migrate`` at work in a thread, from when it said ``awaited``; it must succeed."""
    said = Listener(awaited)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with database_of(parameters):
                call_command("migrate", *arguments, stdout=said, **options)
        except BaseException as error:  # noqa: BLE001 - raised again by the test
            failed.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert said.heard.wait(30), said.getvalue()
        yield said
    finally:
        thread.join(60)
    assert not failed, failed
    assert not thread.is_alive()


# --- One at a time ------------------------------------------------------------


@pytest.mark.slow
def test_of_ten_at_once_one_migrates_and_nine_find_nothing_to_do(
    empty: Parameters, manage_environment: dict[str, str]
) -> None:
    """Their application connections go through a pooler, their locks do not."""
    with pgbouncer(empty) as pooled:
        environment = manage_environment | {
            "DATABASE_URL": "postgres://{user}@{host}:{port}/{dbname}".format(**pooled),
            "MIGRATE_DATABASE_URL": url(empty),
        }
        migrators = [
            subprocess.Popen(
                [sys.executable, "manage.py", "migrate", APP],
                cwd=django_settings.BASE_DIR,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(10)
        ]
        outputs = [migrator.communicate() for migrator in migrators]
    assert [migrator.returncode for migrator in migrators] == [0] * 10, outputs
    for version in VERSIONS:
        assert sum(f"Applying {APP}.{version}... OK" in out for out, _ in outputs) == 1
    assert sum("No migrations to apply." in out for out, _ in outputs) == 9
    with database_of(empty):
        assert {record.state for record in records()} == {"applied"}


def test_through_a_pooler_alone_it_refuses_and_says_what_to_set(
    empty: Parameters, manage: Manage
) -> None:
    with pgbouncer(empty) as pooled, connected(empty) as pg:
        before = read_catalog(pg)
        done = manage(
            "migrate", DATABASE_URL="postgres://{user}@{host}:{port}/{dbname}".format(**pooled)
        )
        assert read_catalog(pg) == before
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "MIGRATE_DATABASE_URL" in done.stderr


def test_a_direct_url_of_another_database_is_refused(
    migrated: Parameters, database: Parameters, settings: LazySettings
) -> None:
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"DIRECT_DATABASE_URL": url(database)}
    with pytest.raises(CommandError, match=r"another database \(test_cartrita\)"):
        run(migrated, "migrate", APP, "zero")
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {
        "DIRECT_DATABASE_URL": "postgres://u:secret%zz@host/name"
    }
    with pytest.raises(CommandError, match="cannot be read") as refused:
        run(migrated, "migrate", APP, "zero")
    assert "secret" not in str(refused.value)
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"DIRECT_DATABASE_URL": url(migrated)}
    assert "No migrations to apply" in run(migrated, "migrate", APP)


def test_it_gives_up_at_the_deadline_and_names_who_holds_the_lock(migrated: Parameters) -> None:
    with (
        connected(migrated, application_name="somebody else") as holder,
        advisory_lock(holder, MIGRATION_LOCK),
        pytest.raises(CommandError, match=rf"pid {holder.info.backend_pid} .*somebody") as raised,
    ):
        run(migrated, "migrate", APP, wait=0.2)
    assert raised.value.returncode == 75


def test_it_says_for_whom_it_waits_and_finds_nothing_to_do_then(migrated: Parameters) -> None:
    with connected(migrated, application_name="somebody else") as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])
        whom = f"Waiting for another migrator: pid {holder.info.backend_pid} (role "
        with migrating(migrated, APP, awaited=whom, wait=60) as said:
            assert "somebody else" in said.getvalue()
            assert "Running migrations" not in said.getvalue()
            holder.execute("SELECT pg_advisory_unlock(%s)", [MIGRATION_LOCK])
        assert "No migrations to apply" in said.getvalue()


def test_what_only_looks_waits_for_nobody(migrated: Parameters) -> None:
    with connected(migrated) as holder, advisory_lock(holder, MIGRATION_LOCK):
        assert "No planned migration" in run(migrated, "migrate", APP, plan=True, wait=0.001)
        run(migrated, "migrate", APP, check_unapplied=True, wait=0.001)


# --- Locks on tables ------------------------------------------------------------


def test_it_waits_its_turn_lets_others_pass_and_succeeds(migrated: Parameters) -> None:
    run(migrated, "migrate", APP, "0004")
    with connected(migrated) as reader, connected(migrated, autocommit=False) as holder:
        holder.execute("SELECT FROM embeddings")
        pid = holder.info.backend_pid
        with migrating(
            migrated, APP, "0005", awaited=f"Waiting for pid {pid} ", lock_timeout=0.1, wait=60
        ) as said:
            # Between two attempts the queue moves on, while the holder still holds.
            reader.execute("SELECT FROM embeddings")
            assert "on embeddings" in said.getvalue()
            assert scalar(reader, "SELECT count(*) FROM schema_migrations") == 4
            holder.rollback()
        assert scalar(reader, "SELECT count(*) FROM schema_migrations") == 5


def test_of_a_lock_that_is_never_let_go_it_names_the_holder_and_leaves_all_as_it_was(
    migrated: Parameters,
) -> None:
    run(migrated, "migrate", APP, "0004")
    with (
        connected(migrated) as pg,
        connected(migrated, autocommit=False, application_name="the holder") as holder,
    ):
        holder.execute("SELECT FROM embeddings")
        before = read_catalog(pg)
        with pytest.raises(CommandError, match=r"the holder.*idle in transaction") as raised:
            run(migrated, "migrate", APP, lock_timeout=0.4, wait=0.5)
        assert raised.value.returncode == 75
        assert f"pid {holder.info.backend_pid} " in str(raised.value)
        assert read_catalog(pg) == before
        assert scalar(pg, "SELECT count(*) FROM schema_migrations") == 4


def test_others_migrations_without_a_transaction_are_not_repeated(migrated: Parameters) -> None:
    """Nobody knows whether they can be."""

    class Migration(migrations.Migration):
        atomic = False

    attempts: list[int] = []

    def work() -> None:
        attempts.append(1)
        raise OperationalError from psycopg.errors.LockNotAvailable()

    with database_of(migrated), connected(migrated) as lock:
        guard = migration_guard._Guard(lock, "default", 60, 0.01, None, print)
        with pytest.raises(LockHeld):
            guard.patiently(Migration("0001_initial", "somebody"), work)
    assert len(attempts) == 1


def test_what_the_role_does_not_own_ends_in_one_line_with_what_is_missing(
    migrated: Parameters, pg: psycopg.Connection
) -> None:
    run(migrated, "migrate", APP, "0004")
    role = sql.Identifier("test migrator")
    pg.execute(sql.SQL("CREATE ROLE {}").format(role))
    with connected(migrated) as own:
        own.execute(
            sql.SQL(
                "GRANT ALL ON SCHEMA public TO {0};GRANT ALL ON ALL TABLES IN SCHEMA public TO {0}"
            ).format(role)
        )
        before = read_catalog(own)
        with database_of(migrated):
            options = connections["default"].settings_dict["OPTIONS"]
            connections["default"].settings_dict["OPTIONS"] = options | {
                "assume_role": "test migrator"
            }
            with pytest.raises(
                CommandError, match=r"must be owner of .*GRANT that role"
            ) as raised:
                call_command("migrate", APP, stdout=StringIO())
        assert raised.value.returncode == 5
        assert read_catalog(own) == before
        own.execute(sql.SQL("DROP OWNED BY {}").format(role))
    pg.execute(sql.SQL("DROP ROLE {}").format(role))


def test_a_wait_of_years_is_taken(migrated: Parameters) -> None:
    """PostgreSQL's own limit of a wait for a lock is 24 days."""
    run(migrated, "migrate", APP, BEFORE_CONCURRENT)
    said = run(migrated, "migrate", APP, CONCURRENT, wait=1e9, lock_timeout=1e9)
    assert f"Applying {APP}.{CONCURRENT}... OK" in said


def test_a_database_that_takes_no_changes_is_told_in_one_line(
    migrated: Parameters, manage: Manage
) -> None:
    """As a replica takes none."""
    run(migrated, "migrate", APP, VERSIONS[-2])
    read_only = f"{url(migrated)}&options=-cdefault_transaction_read_only=on"
    done = manage("migrate", APP, DATABASE_URL=read_only, LOG_LEVEL="WARNING")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Migrate the primary" in done.stderr
    with database_of(migrated):
        assert records()[-1].state == "pending"


def test_the_record_that_a_role_may_not_read_or_rewrite_is_told_in_one_line(
    migrated: Parameters, pg: psycopg.Connection
) -> None:
    role = sql.Identifier("test application")
    pg.execute(sql.SQL("CREATE ROLE {}").format(role))
    with connected(migrated) as own:
        own.execute(sql.SQL("GRANT SELECT ON schema_migrations TO {}").format(role))
        change_checksums(own, VERSIONS[0])
        with database_of(migrated):
            options = connections["default"].settings_dict["OPTIONS"]
            connections["default"].settings_dict["OPTIONS"] = options | {
                "assume_role": "test application"
            }
            with pytest.raises(CommandError, match="table django_migrations") as unread:
                call_command("verify_migrations", stdout=StringIO())
            own.execute(sql.SQL("GRANT SELECT ON django_migrations TO {}").format(role))
            own.execute(sql.SQL("GRANT SELECT ON operator_actions TO {}").format(role))
            with pytest.raises(CommandError, match="table schema_migrations") as unwritten:
                call_command("repair_migration_checksum", VERSIONS[0], expect="other")
        assert unread.value.returncode == unwritten.value.returncode == 5
        own.execute(sql.SQL("DROP OWNED BY {}").format(role))
    pg.execute(sql.SQL("DROP ROLE {}").format(role))


@pytest.mark.parametrize(
    "arguments",
    [
        ["migrate"],
        ["migrate", "--check"],
        ["migrate", "--plan"],
        ["verify_migrations"],
        ["repair_migration_checksum", VERSIONS[0], "--expect", "other"],
        ["import_v1"],
        ["backup_database", "nothing/a.dump"],
        ["restore_backup", "--back-to", "x", "--noinput"],
    ],
    ids=" ".join,
)
def test_a_server_that_is_not_there_is_one_line(
    manage: Manage, tmp_path: Path, arguments: list[str]
) -> None:
    paths = [argument.replace("nothing", str(tmp_path)) for argument in arguments]
    done = manage(*paths, DATABASE_URL="postgres://role:hush@127.0.0.1:1/name")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "connection failed" in done.stderr
    assert "hush" not in done.stderr


def test_whoever_reads_the_output_may_go(
    migrated: Parameters, manage_environment: dict[str, str]
) -> None:
    """As `| head` does."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        done = subprocess.run(
            [sys.executable, "manage.py", "verify_migrations"],
            cwd=django_settings.BASE_DIR,
            env=manage_environment | {"DATABASE_URL": url(migrated)},
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, "")


def test_an_interrupt_is_one_line_and_lets_the_lock_go(
    migrated: Parameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(MigrationExecutor, "migrate", interrupted)
        with pytest.raises(CommandError, match="Interrupted") as raised:
            run(migrated, "migrate", APP)
    assert raised.value.returncode == 130
    run(migrated, "migrate", APP, wait=0.001)


# --- Kills ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_the_next_run_finishes(
    migrated: Parameters, manage: Manage, step: str
) -> None:
    with connected(migrated) as pg:
        whole = read_catalog(pg)
        run(migrated, "migrate", APP, BEFORE_CONCURRENT)
        before = read_catalog(pg)
        done = manage(
            "migrate",
            APP,
            *(["--backup"] if step == "backup" else []),
            DATABASE_URL=url(migrated),
            DJANGO_SETTINGS_MODULE="tests.crash_settings",
            CRASH_AT=f"migrate:{step}",
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert read_catalog(pg) == before
        run(migrated, "migrate", APP)
        assert read_catalog(pg) == whole


def test_killed_while_it_builds_an_index_the_next_run_builds_it_anew(
    migrated: Parameters, manage_environment: dict[str, str]
) -> None:
    with connected(migrated) as pg, connected(migrated, autocommit=False) as writer:
        whole = read_catalog(pg)
        run(migrated, "migrate", APP, BEFORE_CONCURRENT)
        writer.execute("INSERT INTO search_documents (source_table, source_id) VALUES ('a', 1)")
        # That the server ends what nobody waits for it does after ten seconds by itself.
        soon = "&options=-c%20client_connection_check_interval%3D100ms"
        migrator = subprocess.Popen(
            [sys.executable, "manage.py", "migrate", APP],
            cwd=django_settings.BASE_DIR,
            env=manage_environment | {"DATABASE_URL": url(migrated) + soon},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # It waits for the writer's transaction to end before it can count on the index.
        wait_for(pg, "SELECT %s = ANY (pg_blocking_pids(a.pid))", writer.info.backend_pid)
        os.kill(migrator.pid, signal.SIGKILL)
        migrator.wait()
        wait_for(pg, "SELECT count(*) = 0")
        writer.rollback()

        assert (
            scalar(pg, "SELECT indisvalid FROM pg_index WHERE indexrelid = %s::regclass", [INDEX])
            is False
        )
        with database_of(migrated):
            states = {record.version: record.state for record in records()}
        assert states[CONCURRENT] == "half-done"
        with pytest.raises(CommandError, match="1 of "):
            run(migrated, "verify_migrations")

        run(migrated, "migrate", APP)
        assert read_catalog(pg) == whole
        run(migrated, "verify_migrations")


def wait_for(pg: psycopg.Connection, condition: str, *arguments: object) -> None:
    """Until the condition holds of the sessions a that migrate this database."""
    statement = sql.SQL(
        condition + " FROM pg_stat_activity AS a"
        " WHERE a.application_name = 'cartrita migrate' AND a.datname = current_database()"
    )
    deadline = time.monotonic() + 60
    while True:
        rows = pg.execute(statement, arguments).fetchall()
        if any(value for (value,) in rows):
            return
        assert time.monotonic() < deadline


def test_killed_between_django_s_two_commits_on_the_way_back_nothing_is_left_to_undo(
    migrated: Parameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with database_of(migrated), connected(migrated) as pg:
        executor = MigrationExecutor(connections["default"])
        monkeypatch.setattr(executor.recorder, "record_unapplied", killed)
        with pytest.raises(KeyboardInterrupt):
            executor.migrate([(APP, VERSIONS[-2])])
        assert (
            scalar(
                pg,
                "SELECT count(*) FROM django_migrations WHERE app = %s AND name = %s",
                [APP, VERSIONS[-1]],
            )
            == 0
        )
        states = {record.version: record.state for record in records()}
    assert states[VERSIONS[-1]] == "pending"
    assert "OK" in run(migrated, "migrate", APP)


# --- Backup -----------------------------------------------------------------------


def test_a_backup_is_taken_before_the_first_migration_and_not_for_nothing(
    migrated: Parameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[str, int]] = []

    def back_up(self: object, path: str, using: str) -> None:
        with connections[using].cursor() as cursor:
            cursor.execute("SELECT count(*) FROM schema_migrations")
            taken.append((path, cursor.fetchone()[0]))

    monkeypatch.setattr(Command, "_back_up", back_up)
    run(migrated, "migrate", APP, "--backup")
    assert taken == []
    run(migrated, "migrate", APP, VERSIONS[-3], "--backup", "a.dump")
    run(migrated, "migrate", APP, "--backup")
    run(migrated, "migrate", APP, VERSIONS[-2])
    assert taken == [("a.dump", len(VERSIONS)), ("", len(VERSIONS) - 2)]


def test_the_backup_is_a_real_one_and_without_it_nothing_is_migrated(
    migrated: Parameters, tmp_path: Path
) -> None:
    run(migrated, "migrate", APP, VERSIONS[-2])
    diary = tmp_path / "diary.txt"
    diary.write_text("Dear diary")
    with pytest.raises(CommandError, match="is there already, and is no backup"):
        run(migrated, "migrate", APP, "--backup", str(diary))
    with database_of(migrated):
        assert records()[-1].state == "pending"

    path = tmp_path / "a.dump"
    said = run(migrated, "migrate", APP, "--backup", str(path))
    assert said.index("read back in full") < said.index(f"Applying {APP}.{VERSIONS[-1]}... OK")
    manifest = read_manifest(path)
    assert manifest is not None
    assert manifest.database == migrated["dbname"]
    assert manifest.migrations[-1] == f"{APP}.{VERSIONS[-2]}"


# --- The record ---------------------------------------------------------------------


def change_checksums(pg: psycopg.Connection, *versions: str) -> None:
    pg.execute(
        "UPDATE schema_migrations SET checksum = 'other' WHERE version = ANY (%s)",
        [list(versions)],
    )


def test_drift_stops_migrate_unless_forced_which_is_logged_and_recorded(
    migrated: Parameters, settings: LazySettings, caplog: pytest.LogCaptureFixture
) -> None:
    run(migrated, "migrate", APP, VERSIONS[-2])
    with connected(migrated) as pg:
        change_checksums(pg, VERSIONS[0], VERSIONS[2])
        with pytest.raises(CommandError) as refused:
            run(migrated, "migrate", APP)
        for version in (VERSIONS[0], VERSIONS[2]):
            assert f"{version} (recorded other, now {migration_checksum(version)})" in str(
                refused.value
            )
        assert VERSIONS[1] not in str(refused.value)
        assert scalar(pg, "SELECT count(*) FROM schema_migrations") == len(VERSIONS) - 1

        settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"FORCE_MIGRATION": True}
        with caplog.at_level(logging.WARNING):
            run(migrated, "migrate", APP)
        assert f"FORCE_MIGRATION: {VERSIONS[2]}" in caplog.text
        assert scalar(pg, "SELECT count(*) FROM schema_migrations") == len(VERSIONS)
        recorded = pg.execute("SELECT action, subject FROM operator_actions").fetchall()
        assert recorded == [("force_migration", f"{VERSIONS[0]}, {VERSIONS[2]}")]
        # That check alone: another migrator still comes first.
        with (
            advisory_lock(pg, MIGRATION_LOCK),
            pytest.raises(CommandError, match="Another process"),
        ):
            run(migrated, "migrate", APP, wait=0.001)


def test_one_checksum_is_repaired_and_only_the_one_that_was_looked_at(
    migrated: Parameters,
) -> None:
    version, other = VERSIONS[1], VERSIONS[3]

    def repair(name: str, expect: str) -> str:
        return run(migrated, "repair_migration_checksum", name, expect=expect, reason="a comment")

    with connected(migrated) as pg:
        change_checksums(pg, version, other)
        rows = "SELECT array_agg(s::text ORDER BY version) FROM schema_migrations AS s"
        before = scalar(pg, rows)
        for name, expect, message in (
            (version, "another", "has another checksum recorded: other"),
            (VERSIONS[0], "other", "no drift"),
            ("0099_nothing", "other", "no row"),
        ):
            with pytest.raises(CommandError, match=message):
                repair(name, expect)
        assert scalar(pg, rows) == before

        assert migration_checksum(version) in repair(version, "other")
        changed = set(scalar(pg, rows)) - set(before)
        assert len(changed) == 1
        assert version in changed.pop()
        recorded = pg.execute(
            "SELECT action, subject, reason, details FROM operator_actions"
        ).fetchall()
        details = {"from": "other", "to": migration_checksum(version)}
        assert recorded == [("repair_checksum", version, "a comment", details)]
        with pytest.raises(CommandError, match="1 of "):
            run(migrated, "verify_migrations")
        repair(other, "other")
        run(migrated, "verify_migrations")


def test_verify_shows_what_is_applied_and_everything_that_is_wrong(migrated: Parameters) -> None:
    said = run(migrated, "verify_migrations")
    for version in VERSIONS:
        assert version in said
    run(migrated, "migrate", APP, VERSIONS[-2])
    assert "Pending: 1. Run: manage.py migrate" in run(migrated, "verify_migrations")

    with connected(migrated) as pg:
        change_checksums(pg, VERSIONS[0])
        pg.execute("DELETE FROM schema_migrations WHERE version = %s", [VERSIONS[1]])
        pg.execute(
            "DELETE FROM django_migrations WHERE app = %s AND name = %s", [APP, VERSIONS[2]]
        )
        for version in ("0099_of_a_newer_release", "0001_initial_baseline.sql"):
            pg.execute(
                "INSERT INTO schema_migrations (version, checksum, description)"
                " VALUES (%s, 'SHA256:1', 'text')",
                [version],
            )
    said_json = StringIO()
    with (
        database_of(migrated),
        pytest.raises(CommandError, match="4 of 18 migrations") as wrong,
    ):
        call_command("verify_migrations", json=True, stdout=said_json)
    assert wrong.value.returncode == 1
    found = {each["version"]: each for each in json.loads(said_json.getvalue())}
    assert {name: each["state"] for name, each in found.items() if each["state"] != "applied"} == {
        VERSIONS[0]: "drift",
        VERSIONS[1]: "missing",
        VERSIONS[2]: "half-done",
        VERSIONS[-1]: "pending",
        "0099_of_a_newer_release": "unknown",
        "0001_initial_baseline.sql": "earlier",
    }
    assert found[VERSIONS[0]]["recorded_checksum"] == "other"


def test_verify_on_an_empty_database_says_that_all_is_pending(empty: Parameters) -> None:
    assert f"Pending: {len(VERSIONS)}." in run(empty, "verify_migrations")


def test_our_own_tables_are_never_taken_for_v1_s(migrated: Parameters) -> None:
    """As after a faked way back, or with django_migrations lost."""
    run(migrated, "migrate", APP, "zero", fake=True)
    with connected(migrated) as pg:
        before = read_catalog(pg)
        with pytest.raises(CommandError, match="migrate --fake cartrita_search 0001"):
            run(migrated, "migrate", APP)
        assert read_catalog(pg) == before
    run(migrated, "migrate", APP, fake=True)
    run(migrated, "verify_migrations")


@pytest.mark.parametrize("version", RELEASED)
def test_a_released_migration_has_the_checksum_it_was_released_with(version: str) -> None:
    assert migration_checksum(version) == RELEASED[version]
