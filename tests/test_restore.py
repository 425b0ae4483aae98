"""restore_backup: one whole database under the name at every moment, and none lost."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import LazySettings, settings
from django.core.management import CommandError, call_command, load_command_class
from psycopg import sql

from cartrita.embedded.postgres import EmbeddedPostgres
from cartrita_search.db import BACKUP_LOCK, MIGRATION_LOCK, RESTORE_LOCK, advisory_lock
from cartrita_search.errors import (
    DatabaseUnreachable,
    InvalidArgument,
    LockHeld,
    PrivilegeMissing,
    RestoreFailed,
    RestoreRefused,
)
from cartrita_search.ops import databases
from cartrita_search.ops.backup import backup_database
from cartrita_search.ops.database_properties import database_properties
from cartrita_search.ops.dumps import manifest_path
from cartrita_search.ops.restore import (
    BACK_STEPS,
    IN_PLACE_STEPS,
    STEPS,
    RestoreReport,
    go_back,
    plan_restore,
    restore_backup,
)
from cartrita_search.ops.restore_checks import check_rights

from .catalog import read_catalog
from .conftest import Manage
from .pgbouncer import pgbouncer
from .site import PROGRAMS, Site, programs
from .test_migrations import STEPS as VERSIONS
from .v1 import make_v1


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test's backup is kept for the others: a site is always the same."""
    return tmp_path_factory.mktemp("backups")


@pytest.fixture
def backup(site: Site, tmp_path: Path, made_once: Path) -> Path:
    """A backup of the site, in a folder of its own."""
    if not any(made_once.iterdir()):
        backup_database(made_once / "a.dump")
    shutil.copytree(made_once, tmp_path / "backups")
    return tmp_path / "backups" / "a.dump"


def restore(path: Path, **options: Any) -> RestoreReport:
    drop_old = options.pop("drop_old", False)
    return restore_backup(plan_restore(path, **options), drop_old=drop_old)


def pg_dump(site: Site, path: Path, *options: str) -> Path:
    """A dump as somebody makes it by hand."""
    subprocess.run(
        [PROGRAMS / "pg_dump", f"--file={path}", f"--dbname={site.url()}", *options], check=True
    )
    return path


def spoil(site: Site) -> None:
    """What a migration and users do after the backup."""
    site.run(
        "DELETE FROM v1_notes WHERE id <= 250",
        "UPDATE search_documents SET content = 'spoilt'",
        "CREATE TABLE made_later (id integer)",
        "ALTER TABLE v1_notes ADD COLUMN more text",
    )


# --- There and back ---------------------------------------------------------


def test_what_was_there_is_there_again_and_the_former_database_is_kept(
    site: Site, backup: Path, manage: Manage
) -> None:
    before, identity = site.contents(), site.oid()
    spoil(site)
    spoilt = site.contents()
    told: list[str] = []
    plan = plan_restore(backup, progress=lambda label, *_: told.append(label))
    report = restore_backup(plan, progress=lambda label, *_: told.append(label))
    assert site.contents() == before
    assert site.oid() != identity  # which the cache's keys hold
    assert site.run("SELECT to_regclass('made_later')") == [(None,)]
    assert site.others() == [report.kept]
    assert report.kept is not None
    assert re.fullmatch(re.escape(site.name) + r"__before_\d{8}T\d{6}", report.kept)
    assert site.contents(report.kept) == spoilt
    assert report.rows == plan.rows
    assert report.warnings == report.unchecked == ()
    assert {"Checking the backup", "Restoring"} <= set(told)
    ((subject, details),) = site.run(
        "SELECT subject, details FROM operator_actions WHERE action = 'restore'"
    )
    assert (subject, details["kept"]) == (str(backup), report.kept)

    # Objects made after the backup are in no migration's way.
    done = manage("migrate", "cartrita_search", "0001", DATABASE_URL=site.url())
    assert done.returncode == 0, done.stderr
    done = manage("migrate", DATABASE_URL=site.url())
    assert done.returncode == 0, done.stderr

    back = go_back(report.kept)
    assert site.contents() == spoilt
    assert site.oid() == identity
    assert back.kept is not None
    assert site.others() == [back.kept]
    assert back.go_back == f"manage.py restore_backup --back-to {sh_quoted(back.kept)}"


def sh_quoted(text: str) -> str:
    """Quoted so that a shell gives it back."""
    quoted = shlex.quote(text)
    said = subprocess.run(["sh", "-c", f"printf %s {quoted}"], capture_output=True, check=True)
    assert said.stdout.decode() == text
    return quoted


def test_keyword_and_vector_search_answer_alike_after_it(site: Site, backup: Path) -> None:
    search = "SELECT source_id FROM hybrid_search('cup 7', '[0.1, 0.9]', model_name => 'mini')"
    before = site.run(search)
    restore(backup, drop_old=True)
    assert site.run(search) == before
    assert site.others() == []


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("custom", ["--format=custom"]),
        ("directory", ["--format=directory", "--jobs=2"]),
        ("tar", ["--format=tar"]),
        ("plain", []),
        ("plain", ["--inserts", "--clean", "--if-exists"]),
    ],
)
def test_a_dump_made_by_hand_is_restored_with_the_checks_that_are_possible(
    site: Site, tmp_path: Path, kind: str, options: list[str]
) -> None:
    path = pg_dump(site, tmp_path / "by hand", *options)
    before = site.contents()
    spoil(site)
    plan = plan_restore(path)
    assert (plan.format, plan.rows) == (kind, None)
    report = restore_backup(plan, drop_old=True)
    assert site.contents() == before
    nameless = ("name of the database",) if kind == "plain" else ()
    assert report.unchecked == ("SHA-256", "row counts", *nameless)
    assert site.others() == []


def test_plain_sql_is_known_by_its_comments_and_not_by_what_rows_say(
    site: Site, tmp_path: Path
) -> None:
    said = """
CREATE DATABASE mine;
DROP DATABASE mine;
\\connect mine
CREATE EXTENSION IF NOT EXISTS "uuid-ossp";
CREATE TABLE lost (
"""
    site.run(
        "CREATE TABLE parts (n integer, note text) PARTITION BY LIST (n)",
        "CREATE TABLE part_1 PARTITION OF parts FOR VALUES IN (1)",
        f"INSERT INTO parts VALUES (1, $${said}$$)",
    )
    path = pg_dump(site, tmp_path / "a.sql", "--inserts")
    site.run("DELETE FROM parts")
    restore(path, drop_old=True)
    assert site.run("SELECT note FROM parts") == [(said,)]
    # But what goes elsewhere does so before any row.
    path.write_text("-- PostgreSQL database dump\n\\connect other\n" + path.read_text())
    refused(site, path, "pg_dump --create")


def test_a_dump_made_by_hand_brings_a_lost_database_back(site: Site, tmp_path: Path) -> None:
    path = pg_dump(site, tmp_path / "by hand", "--format=custom")
    before = site.contents()
    site.drop_all()
    plan = plan_restore(path)
    assert plan.database_bytes is None
    assert "is not there" in "".join(plan.lines(drop_old=False))
    restore_backup(plan)
    assert site.contents() == before


def test_a_folder_of_several_jobs_is_restored_too(site: Site, tmp_path: Path) -> None:
    before = site.contents()
    backup_database(tmp_path / "a.dump", jobs=2)
    spoil(site)
    restore(tmp_path / "a.dump", jobs=3, drop_old=True)
    assert site.contents() == before


def test_the_database_s_own_properties_outlive_it(site: Site, backup: Path) -> None:
    name = sql.Identifier(site.name).as_string(None)
    site.run(
        "DROP ROLE IF EXISTS owning",
        "DROP ROLE IF EXISTS reading",
        "CREATE ROLE owning",
        "CREATE ROLE reading",
        f"ALTER DATABASE {name} OWNER TO owning",
        f"REVOKE ALL ON DATABASE {name} FROM PUBLIC",
        f"GRANT CONNECT ON DATABASE {name} TO reading WITH GRANT OPTION",
        f'ALTER DATABASE {name} SET search_path TO "$user", public, "odd, one"',
        f"ALTER DATABASE {name} SET cartrita.secret TO 'a''b c'",
        f"ALTER ROLE reading IN DATABASE {name} SET work_mem TO '7MB'",
        f"ALTER DATABASE {name} SET default_transaction_read_only TO off",
        f"ALTER DATABASE {name} CONNECTION LIMIT 17",
        f"COMMENT ON DATABASE {name} IS 'the one that matters'",
    )
    properties = (
        "SELECT pg_get_userbyid(d.datdba), d.datacl::text, d.datconnlimit, d.datcollate,"
        " d.datlocprovider, shobj_description(d.oid, 'pg_database'),"
        " (SELECT array_agg(array[setrole::regrole::text, setconfig::text] ORDER BY setrole)"
        "  FROM pg_db_role_setting WHERE setdatabase = d.oid)"
        " FROM pg_database AS d WHERE datname = current_database()"
    )
    try:
        before = site.run(properties)
        report = restore(backup)
        assert report.warnings == ()
        assert site.run(properties) == before
        assert site.run("SHOW search_path") == [('"$user", public, "odd, one"',)]
        # And where there is no database any more, they are the backup's.
        again = backup_database(backup)
        site.drop_all()
        restored = restore(Path(again.path))
        assert restored.kept is None
        assert site.run(properties) == before
    finally:
        site.drop_all()
        site.run("DROP ROLE owning", "DROP ROLE reading", name="postgres")


def test_a_setting_that_cannot_be_given_is_told_without_its_value(
    site: Site, backup: Path
) -> None:
    site.run("DROP ROLE IF EXISTS gone", "CREATE ROLE gone")
    name = sql.Identifier(site.name).as_string(None)
    site.run(f"ALTER ROLE gone IN DATABASE {name} SET cartrita.secret TO 'hush'")
    again = backup_database(backup)
    site.drop_all()
    with site.connect("postgres") as pg:
        pg.execute("DROP ROLE gone")
    report = restore(Path(again.path))
    (warning,) = report.warnings
    assert 'cartrita.secret of role gone: role "gone" does not exist' in warning
    assert "hush" not in warning


# --- Refused before anything is touched -------------------------------------


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 4
    path.write_bytes(data)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def of_a_newer_pg_dump(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[6] = 99  # the minor version of the archive's format
    path.write_bytes(data)


def missing(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def something_else(path: Path) -> None:
    path.write_text("Dear diary")


def with_another_manifest(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        manifest = json.loads(manifest_path(path).read_text())
        manifest_path(path).write_text(json.dumps(manifest | changes))

    return change


def with_half_a_manifest(path: Path) -> None:
    truncated(manifest_path(path))


@pytest.mark.parametrize("by_hand", [False, True], ids=["ours", "by hand"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncated, "not whole|cannot be read"),
        (flipped, "SHA-256|cannot be read"),
        (emptied, "empty|not whole"),
        (of_a_newer_pg_dump, "SHA-256|unsupported version.*newer pg_dump"),
        (missing, "There is no backup at"),
        (a_folder, "is a folder"),
        (something_else, "is no backup made by pg_dump"),
    ],
)
def test_a_bad_backup_is_refused_before_anything_is_touched(
    site: Site, backup: Path, damage: Callable[[Path], None], said: str, by_hand: bool
) -> None:
    if by_hand:
        manifest_path(backup).unlink()
    damage(backup)
    refused(site, backup, said)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (with_another_manifest(server_version="19.1"), r"is of PostgreSQL 19\.1.* server is 18"),
        (with_another_manifest(database="an'other"), r"--of-database 'an'\"'\"'other'"),
        (with_another_manifest(format=2), "newer version of this package"),
        (with_another_manifest(roles=['no"body']), 'CREATE ROLE "no""body"'),
        (with_another_manifest(database_bytes=1 << 60), "disk has"),
        (with_half_a_manifest, "manifest .* cannot be read"),
        (with_another_manifest(files={".": {"bytes": 1}}), "manifest .* cannot be read"),
        (with_another_manifest(tables=[]), "manifest .* cannot be read"),
        (with_another_manifest(properties={"owner": "x"}), "manifest .* cannot be read"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused_before_anything_is_touched(
    site: Site, backup: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(backup)
    refused(site, backup, said)


def refused(site: Site, path: Path, said: str, **options: Any) -> None:
    before, identity, others = site.contents(), site.oid(), site.others()
    with pytest.raises(RestoreRefused, match=said) as raised:
        plan_restore(path, **options)
    assert len(str(raised.value).splitlines()) == 1
    assert "Nothing was touched" in raised.value.hint
    assert (site.contents(), site.oid(), site.others()) == (before, identity, others)


def test_a_dump_of_another_database_is_refused_unless_that_is_meant(
    site: Site, tmp_path: Path
) -> None:
    other = Site(site.parameters, "site_template")
    refused(site, pg_dump(other, tmp_path / "a.dump", "--format=custom"), "database site_template")
    site.run("DELETE FROM v1_notes WHERE id > 3")
    restore(tmp_path / "a.dump", of_database="site_template", drop_old=True)
    assert site.contents() == other.contents()
    # Plain SQL does not tell its database's name, but what it holds.
    empty = Site(site.parameters, "template1")
    refused(site, pg_dump(empty, tmp_path / "a.sql"), "none of the tables")


def test_plain_sql_that_is_not_whole_or_goes_elsewhere_is_refused(
    site: Site, tmp_path: Path
) -> None:
    path = pg_dump(site, tmp_path / "a.sql")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    refused(site, path, "its last line is missing")
    refused(site, pg_dump(site, tmp_path / "b.sql", "--create"), "pg_dump --create")
    (tmp_path / "a.sql.gz").write_bytes(gzip.compress(whole))
    refused(site, tmp_path / "a.sql.gz", "compressed")
    newer = whole.replace(b"Dumped from database version 18", b"Dumped from database version 21")
    path.write_bytes(newer)
    refused(site, path, "PostgreSQL 21")
    everything = tmp_path / "all.sql"
    subprocess.run(
        [PROGRAMS / "pg_dumpall", "--globals-only", f"--file={everything}", "-d", site.url()],
        check=True,
    )
    refused(site, everything, "whole server")


def test_plain_sql_that_fails_half_way_leaves_the_database_as_it_was(
    site: Site, tmp_path: Path
) -> None:
    path = pg_dump(site, tmp_path / "a.sql")
    whole = path.read_text()
    path.write_text(whole.replace("CREATE TABLE public.v1_notes", "CREATE TABEL public.v1_notes"))
    before = site.contents()
    with pytest.raises(RestoreFailed, match='syntax error at or near "TABEL"'):
        restore(path)
    assert site.contents() == before
    assert site.others() == []


def test_a_row_too_few_is_found_before_the_swap(site: Site, backup: Path) -> None:
    manifest = json.loads(manifest_path(backup).read_text())
    manifest["tables"]["public.v1_notes"] += 1
    manifest_path(backup).write_text(json.dumps(manifest))
    identity = site.oid()
    with pytest.raises(RestoreFailed, match=r"v1_notes has 500 rows instead of 501.*as it was"):
        restore(backup)
    assert site.oid() == identity
    assert site.others() == []


def test_of_a_backup_that_is_missing_those_beside_are_named(site: Site, backup: Path) -> None:
    earlier = backup_database(backup).earlier
    assert earlier is not None
    backup.unlink()
    refused(site, backup, re.escape(f"There is: {earlier}"))
    refused(site, backup.with_name("**.dump"), "There is no backup")


# --- Kills ------------------------------------------------------------------


def crash(manage: Manage, site: Site, at: str, *arguments: str) -> None:
    done = crashed(manage, site, at, *arguments)
    assert done.returncode == -9, (at, done.stderr)


def crashed(
    manage: Manage, site: Site, at: str, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    return manage(
        "restore_backup",
        *arguments,
        "--noinput",
        DJANGO_SETTINGS_MODULE="tests.crash_settings",
        CRASH_AT=f"restore:{at}",
        DATABASE_URL=site.url(),
        POSTGRES_BIN=str(PROGRAMS),
        **variables,
    )


def test_sigterm_undoes_what_was_begun(site: Site, backup: Path, manage: Manage) -> None:
    identity = site.oid()
    done = crashed(manage, site, "verify", str(backup), CRASH_SIGNAL="SIGTERM")
    assert done.returncode == 130, done.stderr
    assert "\nCommandError: Interrupted. The database is as it was" in done.stderr
    assert (site.oid(), site.others()) == (identity, [])


@pytest.mark.slow
def test_killed_at_any_step_one_whole_database_answers_and_the_next_run_finishes(
    site: Site, backup: Path, manage: Manage
) -> None:
    restorable = site.contents()
    spoil(site)
    spoilt = site.contents()
    for name in STEPS:
        crash(manage, site, name, str(backup))
        assert site.contents() == (restorable if name == "record" else spoilt), name
    # Killed after the swap, the former database is kept as promised; nothing else is left.
    (kept,) = site.others()
    assert site.contents(kept) == spoilt
    report = restore(backup)
    assert site.contents() == restorable
    assert report.kept is not None
    assert site.others() == sorted([kept, report.kept])

    for name in BACK_STEPS:
        crash(manage, site, name, "--back-to", kept)
        assert site.contents() == (spoilt if name == "record" else restorable), name
    assert kept not in site.others()


@pytest.mark.slow
def test_killed_in_place_all_or_nothing_is_restored(
    site: Site, backup: Path, manage: Manage
) -> None:
    restorable = site.contents()
    site.run("DELETE FROM v1_notes WHERE id <= 250")
    spoilt = site.contents()
    for name in IN_PLACE_STEPS:
        crash(manage, site, name, str(backup), "--in-place")
        assert site.contents() == (restorable if name == "record" else spoilt), name
    restore(backup, in_place=True)
    assert site.contents() == restorable


def test_a_pg_restore_that_outlived_its_restore_can_reach_nothing(
    site: Site, backup: Path, tmp_path: Path, manage: Manage
) -> None:
    # It kills its parent, and goes on as an orphan.
    restorable = site.contents()
    spoil(site)
    script = 'case "$*" in *--exit-on-error*) kill -9 $PPID;; esac\nexec "$real" "$@"'
    with programs(tmp_path / "bin", "pg_restore", script) as folder:
        done = manage(
            "restore_backup",
            str(backup),
            "--noinput",
            DATABASE_URL=site.url(),
            POSTGRES_BIN=str(folder),
        )
    assert done.returncode == -9
    restore(backup, drop_old=True)
    assert site.contents() == restorable
    assert site.others() == []


# --- In use -----------------------------------------------------------------


def test_clients_that_come_back_at_once_are_served_by_a_whole_database(
    site: Site, backup: Path
) -> None:
    spoil(site)
    stop, served = threading.Event(), []

    def client() -> None:
        while not stop.is_set():
            try:
                with site.connect() as connection:
                    while not stop.is_set():
                        row = connection.execute("SELECT count(*) FROM v1_notes").fetchone()
                        served.append(row)
            except psycopg.OperationalError:
                continue  # ended by the swap, or came in the middle of it

    clients = [threading.Thread(target=client) for _ in range(3)]
    with site.connect() as idle:
        idle.execute("BEGIN")
        idle.execute("LOCK TABLE v1_notes IN ROW SHARE MODE")
        for each in clients:
            each.start()
        report = restore(backup)
        with pytest.raises(psycopg.OperationalError):
            idle.execute("SELECT 1")
    deadline = time.monotonic() + 60
    while (500,) not in served:
        assert time.monotonic() < deadline, "no client ever reached the restored database"
    stop.set()
    for each in clients:
        each.join(60)
    assert set(served) == {(250,), (500,)}
    assert site.others() == [report.kept]


@pytest.mark.parametrize("key", [MIGRATION_LOCK, BACKUP_LOCK, RESTORE_LOCK])
def test_a_restore_waits_for_nobody_and_disturbs_no_migration_or_backup(
    site: Site, backup: Path, key: int
) -> None:
    place = "postgres" if key == RESTORE_LOCK else site.name
    identity = site.oid()
    with (
        site.connect(place) as holder,
        advisory_lock(holder, key),
        pytest.raises(LockHeld, match=f"pid {holder.info.backend_pid}"),
    ):
        restore(backup)
    assert site.oid() == identity
    assert site.others() == []


def test_past_a_pooler_whose_clients_go_on_with_the_restored_database(
    site: Site, tmp_path: Path, manage: Manage
) -> None:
    path = str(tmp_path / "a.dump")
    with pgbouncer(site.parameters | {"dbname": "postgres"}) as pooler:
        through = Site(pooler)
        variables = {"POSTGRES_BIN": str(PROGRAMS), "LOG_LEVEL": "WARNING"}
        done = manage("backup_database", path, DATABASE_URL=through.url(), **variables)
        assert done.returncode == 1
        assert re.search(r"^CommandError: The connection goes through a pooler", done.stderr)
        variables |= {"DATABASE_URL": through.url(), "MIGRATE_DATABASE_URL": site.url()}
        done = manage("backup_database", path, **variables)
        assert done.returncode == 0, done.stderr
        spoil(site)
        count = "SELECT count(*) FROM v1_notes"
        with through.connect() as client:
            assert client.execute(count).fetchone() == (250,)
            done = manage("restore_backup", path, "--noinput", **variables)
            assert (done.returncode, "WARNING" in done.stderr) == (0, False), done.stderr
            assert client.execute(count).fetchone() == (500,)
    assert site.run("SELECT action FROM operator_actions") == [("restore",)]


# --- Roles and rights -------------------------------------------------------


@pytest.fixture
def plain_role(site: Site, settings: LazySettings) -> Iterator[str]:
    """A role that owns the database and all in it but the extension, and is nothing more."""
    name = "plain role"
    role = sql.Identifier(name).as_string(None)
    database = sql.Identifier(site.name).as_string(None)
    site.run(
        f"DROP ROLE IF EXISTS {role}",
        f"CREATE ROLE {role} LOGIN",
        f"ALTER DATABASE {database} OWNER TO {role}",
        f"ALTER SCHEMA public OWNER TO {role}",
        f"""
        DO $$
        DECLARE statement text;
        BEGIN
            FOR statement IN
                SELECT format('ALTER %s %s OWNER TO {role}',
                              CASE c.relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END,
                              c.oid::regclass)
                FROM pg_class AS c
                WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v')
                UNION ALL
                SELECT format('ALTER FUNCTION %s OWNER TO {role}', p.oid::regprocedure)
                FROM pg_proc AS p
                WHERE p.pronamespace = 'public'::regnamespace
                    AND NOT EXISTS (SELECT FROM pg_depend AS d
                                    WHERE d.objid = p.oid AND d.deptype = 'e')
                UNION ALL
                SELECT format('ALTER TYPE %s OWNER TO {role}', t.oid::regtype)
                FROM pg_type AS t
                WHERE t.typnamespace = 'public'::regnamespace AND t.typtype IN ('c', 'd', 'e')
                    AND (t.typrelid = 0
                         OR (SELECT relkind FROM pg_class WHERE oid = t.typrelid) = 'c')
                    AND NOT EXISTS (SELECT FROM pg_depend AS d
                                    WHERE d.objid = t.oid AND d.deptype = 'e')
            LOOP
                EXECUTE statement;
            END LOOP;
        END $$
        """,
    )
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {
        "DIRECT_DATABASE_URL": site.url("plain%20role")
    }
    yield name
    site.drop_all()
    site.run(f"DROP ROLE {role}", name="postgres")


def test_without_createdb_in_place_is_suggested_and_works(
    site: Site, plain_role: str, tmp_path: Path
) -> None:
    path = Path(backup_database(tmp_path / "a.dump").path)
    restorable, identity = site.contents(), site.oid()
    site.run(
        "DELETE FROM v1_notes WHERE id <= 250",
        "DELETE FROM search_documents",
        f'ALTER ROLE "{plain_role}" SET default_transaction_read_only TO on',
    )
    with pytest.raises(PrivilegeMissing, match=r'ALTER ROLE "plain role" CREATEDB.*--in-place'):
        plan_restore(path)
    report = restore(path, in_place=True)
    assert report.in_place
    assert report.kept is None
    assert site.contents() == restorable
    assert site.oid() == identity


def test_an_extension_that_the_role_may_not_create_is_told_before_loading(
    site: Site, plain_role: str, tmp_path: Path, settings: LazySettings
) -> None:
    path = Path(backup_database(tmp_path / "a.dump").path)
    before = site.contents()
    site.run('ALTER ROLE "plain role" CREATEDB')
    with pytest.raises(PrivilegeMissing, match=r"may not create the extension vector.*--in-place"):
        restore(path)
    assert site.contents() == before
    assert site.others() == []
    # A superuser may, with the manifest and without.
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"DIRECT_DATABASE_URL": site.url()}
    restore(path, drop_old=True)
    manifest_path(path).unlink()
    restore(path, drop_old=True)
    assert site.contents() == before


@pytest.mark.slow
def test_a_session_that_may_not_be_ended_is_named(
    site: Site, plain_role: str, tmp_path: Path
) -> None:
    with site.connect() as superuser:
        site.run('ALTER ROLE "plain role" CREATEDB')
        with (
            databases.maintenance_connection(site.name, "default") as connection,
            pytest.raises(RestoreFailed, match=f"pid {superuser.info.backend_pid} .*pg_signal"),
        ):
            databases.swap(connection, site.name, "nothing", "default", exists=True)
        assert superuser.execute("SELECT count(*) FROM v1_notes").fetchone() == (500,)
    assert site.others() == []


def test_a_database_of_somebody_else_is_not_renamed(site: Site, plain_role: str) -> None:
    name = sql.Identifier(site.name).as_string(None)
    site.run('ALTER ROLE "plain role" CREATEDB', f"ALTER DATABASE {name} OWNER TO postgres")
    with databases.maintenance_connection(site.name, "default") as connection:
        properties = database_properties(connection, site.name)
        with pytest.raises(PrivilegeMissing, match=r'belongs to role postgres.*GRANT "postgres"'):
            check_rights(connection, site.name, properties)


# --- In place ---------------------------------------------------------------


def test_in_place_refuses_to_leave_later_objects_behind(site: Site, backup: Path) -> None:
    spoil(site)
    site.run("CREATE FUNCTION later() RETURNS integer LANGUAGE sql AS 'SELECT 1'")
    refused(
        site,
        backup,
        r"2 objects were made after .*TABLE public made_later, FUNCTION public later\(\)\.",
        in_place=True,
    )
    site.run("DROP TABLE made_later", "DROP FUNCTION later")
    plan_restore(backup, in_place=True)


def test_in_place_what_goes_with_a_table_is_no_obstacle(site: Site, backup: Path) -> None:
    before = site.contents()
    site.run(
        "CREATE INDEX made_later ON embeddings USING hnsw ((embedding::vector(2)) vector_l2_ops)",
        "ALTER TABLE v1_notes ADD more text DEFAULT 'x', ADD UNIQUE (id, more)",
        "CREATE STATISTICS later ON id, note FROM v1_notes",
        "ALTER TABLE v1_notes ENABLE ROW LEVEL SECURITY",
        "DELETE FROM v1_notes WHERE id > 250",
    )
    restore(backup, in_place=True)
    assert site.contents() == before
    assert site.run("SELECT to_regclass('made_later')") == [(None,)]
    site.run("ALTER TABLE v1_notes ADD other uuid REFERENCES search_documents")
    refused(site, backup, "FK CONSTRAINT public v1_notes", in_place=True)


def test_in_place_to_before_a_migration_which_can_be_run_again(
    site: Site, tmp_path: Path, manage: Manage
) -> None:
    last, before_it = VERSIONS[-1], VERSIONS[-2]
    call_command("migrate", "cartrita_search", before_it, verbosity=0)
    path = Path(backup_database(tmp_path / "a.dump").path)
    restorable = site.contents()
    call_command("migrate", verbosity=0)
    site.run("UPDATE search_documents SET content = 'spoilt'")
    refused(site, path, f"manage.py migrate cartrita_search {before_it}, then DROP", in_place=True)
    call_command("migrate", "cartrita_search", before_it, verbosity=0)
    restore(path, in_place=True)
    assert site.contents() == restorable
    said = io.StringIO()
    call_command("migrate", stdout=said)
    assert f"Applying cartrita_search.{last}... OK" in said.getvalue()


def test_in_place_back_to_v1_which_can_be_migrated_again(site: Site, tmp_path: Path) -> None:
    with site.connect() as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
        make_v1(connection, runner_files=4)
        before = read_catalog(connection).keys()
        path = Path(backup_database(tmp_path / "a.dump").path)
        call_command("migrate", verbosity=0)
        connection.execute("DELETE FROM embeddings_v1")
        refused_in_place(path, "migrate cartrita_search zero, then")
        call_command("migrate", "cartrita_search", "zero", verbosity=0)
        # What is left is Django's.
        said = refused_in_place(path, "TABLE public django_migrations")
        left = re.findall(r"TABLE public (\w+)", said)
        connection.execute("DROP TABLE " + ", ".join(left))
        restore(path, in_place=True)
        assert read_catalog(connection).keys() == before
        assert connection.execute("SELECT count(*) FROM embeddings").fetchone() == (8,)
        call_command("migrate", verbosity=0)
        call_command("verify_migrations", stdout=io.StringIO())


def refused_in_place(path: Path, said: str) -> str:
    with pytest.raises(RestoreRefused, match=said) as raised:
        plan_restore(path, in_place=True)
    return str(raised.value)


def test_in_place_names_the_session_that_it_waits_for(site: Site, backup: Path) -> None:
    told: list[str] = []
    with site.connect() as holder:
        holder.execute("SET application_name = 'forgotten'")
        holder.execute("BEGIN")
        holder.execute("SELECT FROM v1_notes")

        def tell(label: str, *_: object) -> None:
            told.append(label)
            if label.startswith("Waiting"):
                holder.execute("ROLLBACK")

        restore_backup(plan_restore(backup, in_place=True), progress=tell)
        assert f"Waiting for pid {holder.info.backend_pid} (role postgres, forgotten)" in told


def test_in_place_gives_the_cache_another_identity(site: Site, tmp_path: Path) -> None:
    generation = "SELECT search_generation(ARRAY['identity'])"
    path = Path(backup_database(tmp_path / "a.dump").path)
    before = site.run(generation)
    assert site.run(generation) == before
    restore(path, in_place=True)
    assert site.run(generation) != before


def test_in_place_takes_neither_plain_sql_nor_jobs_nor_a_missing_database(
    site: Site, backup: Path, tmp_path: Path
) -> None:
    refused(site, pg_dump(site, tmp_path / "a.sql"), "plain SQL", in_place=True)
    with pytest.raises(InvalidArgument, match="one transaction"):
        plan_restore(backup, in_place=True, jobs=2)
    site.drop_all()
    with pytest.raises(DatabaseUnreachable, match="does not exist"):
        plan_restore(backup, in_place=True)


# --- Prepared transactions and full disks: a server of one's own ------------


@pytest.fixture
def small_server() -> Iterator[EmbeddedPostgres]:
    """A server of which no file may grow beyond 20 MB: write() fails as on a full disk."""
    # Not below pytest's folder, which every other run of pytest closes to the server's user.
    with tempfile.TemporaryDirectory(prefix="cartrita-small-") as folder:
        server = EmbeddedPostgres(
            Path(folder),
            {
                "max_prepared_transactions": "1",
                "fsync": "off",
                "shared_buffers": "16MB",
                "max_connections": "20",
                "wal_level": "logical",
            },
        )
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20 << 20, limits[1]))
        try:
            server.start()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        yield server
        server.stop()


@pytest.mark.slow
def test_a_full_disk_and_a_prepared_transaction_are_one_line_each(
    site: Site, small_server: EmbeddedPostgres, tmp_path: Path, settings: LazySettings
) -> None:
    # On the roomy server the table is larger than any file may be on the small one.
    site.run("CREATE TABLE large AS SELECT repeat('x', 1000) AS x FROM generate_series(1, 30000)")
    path = Path(backup_database(tmp_path / "a.dump").path)
    there = Site(
        {"host": str(small_server.socket.parent), "port": 5432, "user": "postgres"}, "small"
    )
    there.run("CREATE DATABASE small", name="postgres")
    there.run("CREATE TABLE precious AS SELECT 1 AS n")
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"DIRECT_DATABASE_URL": there.url()}
    with pytest.raises(RestoreFailed, match=r"could not (extend|write).*as it was") as raised:
        restore(path, of_database=site.name)
    assert len(str(raised.value).splitlines()) == 1
    assert there.run("SELECT n FROM precious") == [(1,)]
    assert there.others() == []

    with there.connect() as pg:
        pg.execute("BEGIN")
        pg.execute("INSERT INTO precious VALUES (2)")
        pg.execute("PREPARE TRANSACTION 'in doubt'")
    with pytest.raises(RestoreRefused, match=r"prepared transactions.*: in doubt"):
        plan_restore(path, of_database=site.name)


@pytest.mark.slow
def test_replication_slots_that_stay_with_the_former_database_are_told(
    site: Site, small_server: EmbeddedPostgres, tmp_path: Path, settings: LazySettings
) -> None:
    there = Site(
        {"host": str(small_server.socket.parent), "port": 5432, "user": "postgres"}, "small"
    )
    there.run("CREATE DATABASE small", name="postgres")
    there.run("CREATE TABLE precious AS SELECT 1 AS n")
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"DIRECT_DATABASE_URL": there.url()}
    path = Path(backup_database(tmp_path / "a.dump").path)
    there.run("SELECT pg_create_logical_replication_slot('feed', 'pgoutput')")
    plan = plan_restore(path)
    assert "replication slot feed stays with" in "".join(plan.lines(drop_old=False))
    report = restore_backup(plan)
    (warning,) = report.warnings
    assert "SELECT pg_drop_replication_slot('feed')" in warning
    assert report.kept is not None
    # It belongs to the one that comes back, and not to the one that goes.
    assert go_back(report.kept).warnings == ()
    assert restore(path, drop_old=True).warnings == ()
    assert there.run("SELECT count(*) FROM pg_replication_slots") == [(0,)]


def test_a_server_that_ends_our_sessions_half_way_is_one_line_and_no_harm(
    site: Site, backup: Path, tmp_path: Path, settings: LazySettings
) -> None:
    before = site.contents()
    script = (
        f'case "$*" in *--exit-on-error*) "{PROGRAMS}/psql" -qX "{site.url(name="postgres")}" -c'
        ' "SELECT pg_terminate_backend(pid) FROM pg_stat_activity'
        " WHERE application_name = 'cartrita restore'\" > /dev/null;; esac\n"
        'exec "$real" "$@"'
    )
    with programs(tmp_path / "bin", "pg_restore", script) as folder:
        settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"POSTGRES_BIN": str(folder)}
        with pytest.raises(RestoreFailed, match=r"terminat.*as it was") as raised:
            restore(backup)
    assert len(str(raised.value).splitlines()) == 1
    assert site.contents() == before
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"POSTGRES_BIN": ""}
    restore(backup, drop_old=True)
    assert site.contents() == before
    assert site.others() == []


# --- Names ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a" * 63, "ü" * 31, "short"])
def test_names_beside_are_within_what_postgresql_keeps_and_one_s_own(name: str) -> None:
    made = databases.scratch_name(name)
    assert len(made.encode()) <= databases.MAXIMUM_NAME
    assert made != databases.scratch_name(name)
    assert databases.scratch_name(name[:-1] + "b")[:-8] != made[:-8]


def test_a_database_that_only_looks_like_a_leftover_is_left_alone(
    site: Site, backup: Path
) -> None:
    others = [f"{site.name}__restore_mine", f"{site.name}_x__restore_0123abcd"]
    with site.connect("postgres") as pg:
        for name in others:
            pg.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    restore(backup, drop_old=True)
    assert site.others() == sorted(others)


# --- The command ------------------------------------------------------------


def test_the_command_shows_the_plan_asks_and_prints_how_to_go_back(
    site: Site,
    backup: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    identity = site.oid()
    call_command("restore_backup", str(backup), "--dry-run")
    out = capsys.readouterr().out
    assert "Checks: SHA-256 of every byte" in out
    assert f"kept as {site.name}__before_<time>" in out
    call_command("restore_backup", str(backup), "--dry-run", "--json")
    plan = json.loads(capsys.readouterr().out)
    assert (plan["database"], plan["format"], plan["kept"]) == (site.name, "custom", [])

    for answer in ("no\n", ""):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        with pytest.raises(CommandError, match="Nothing was touched"):
            call_command("restore_backup", str(backup))
    assert site.oid() == identity

    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))
    capsys.readouterr()
    call_command("restore_backup", str(backup))
    out = capsys.readouterr().out
    (kept,) = site.others()
    assert f"The former database is kept as {kept}" in out
    assert f"To go back to it: manage.py restore_backup --back-to {sh_quoted(kept)}" in out
    call_command("restore_backup", str(backup), "--dry-run")
    assert f"Kept from an earlier restore: {kept}" in capsys.readouterr().out

    call_command("restore_backup", "--back-to", kept, "--noinput", "--json")
    assert json.loads(capsys.readouterr().out)["path"] == kept
    assert site.oid() == identity


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--in-place", "--keep-old"], "no former one to keep"),
        (["--in-place", "--drop-old"], "no former one to keep"),
        (["--back-to", "x", "--drop-old"], "no other option"),
        (["--back-to", "x", "--of-database", "y"], "no other option"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    site: Site, options: list[str], said: str
) -> None:
    with pytest.raises(CommandError, match=said) as raised:
        call_command("restore_backup", *options, "--noinput")
    assert raised.value.returncode == 2


def test_the_command_refuses_in_one_line_with_its_exit_code(
    site: Site, backup: Path, manage: Manage
) -> None:
    with pytest.raises(CommandError, match="is no database kept by a restore") as raised:
        call_command("restore_backup", "--back-to", "postgres", "--noinput")
    assert raised.value.returncode == 1
    with pytest.raises(CommandError, match="takes no backup"):
        call_command("restore_backup", str(backup), "--back-to", "x")
    with site.connect() as holder, advisory_lock(holder, MIGRATION_LOCK):
        done = manage(
            "restore_backup",
            str(backup),
            "--noinput",
            DATABASE_URL=site.url(),
            POSTGRES_BIN=str(PROGRAMS),
            LOG_LEVEL="WARNING",
        )
    assert done.returncode == 75
    assert len(done.stderr.splitlines()) <= 11  # the progress of the check, and one line
    assert done.stderr.splitlines()[-1].startswith("CommandError: Another process is at it")


def test_the_runbook_names_commands_and_options_that_there_are() -> None:
    page = (settings.BASE_DIR / "docs" / "rolling-back.md").read_text(encoding="utf-8")
    lines = re.findall(r"manage\.py (backup_database|restore_backup)(.*)", page)
    assert {name for name, _ in lines} == {"backup_database", "restore_backup"}
    known = set()
    for name in ("backup_database", "restore_backup"):
        parser = load_command_class("cartrita_search", name).create_parser("manage.py", name)
        known |= {option for action in parser._actions for option in action.option_strings}
    # pg_dump's own, pg_dumpall's and another command's beside.
    assert set(re.findall(r"--[a-z][a-z-]+", page)) - known == {"--create"}
