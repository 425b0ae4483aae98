"""backup_database: whole, consistent, never in place of an earlier one, and secret."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from django.conf import LazySettings
from django.core.management import CommandError, call_command
from django.db import connection
from psycopg import sql

from cartrita.embedded.postgres import EmbeddedPostgres
from cartrita_search.db import BACKUP_LOCK, advisory_lock
from cartrita_search.errors import (
    BackupFailed,
    DatabaseUnreachable,
    InvalidArgument,
    LockHeld,
    PackageMissing,
    PrivilegeMissing,
)
from cartrita_search.ops import programs as programs_module
from cartrita_search.ops.backup import STEPS, backup_database, default_path
from cartrita_search.ops.dumps import Manifest, manifest_path, read_manifest
from cartrita_search.ops.restore import plan_restore

from .conftest import Manage
from .site import PROGRAMS, Site, programs

SECRET = r"p:a\s's w\"ö%rd"


def manifest_of(path: Path) -> Manifest:
    found = read_manifest(path)
    assert found is not None
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- What it holds ----------------------------------------------------------


def test_the_manifest_says_what_the_backup_holds(site: Site, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None, str]] = []
    report = backup_database(tmp_path / "new" / "a.dump", progress=lambda *args: told.append(args))
    path = Path(report.path)
    manifest = manifest_of(path)
    assert (manifest.database, report.database) == (site.name, site.name)
    assert manifest.tables["public.search_documents"] == 40
    assert manifest.tables["public.v1_notes"] == 500
    assert "cartrita_search.0001_initial_baseline" in manifest.migrations
    assert manifest.extensions.keys() == {"vector"}
    assert manifest.roles == ["postgres"]
    assert (report.rows, report.tables) == (manifest.rows, len(manifest.tables))
    assert report.bytes == path.stat().st_size
    assert report.earlier is None
    # The phases are told, and each to its end.
    assert {label: (done, total) for label, done, total, _ in told}["Reading back"] == (0, 0)
    # Everybody's data: for their owner alone.
    assert names(path.parent) == ["a.dump", "a.dump.json"]
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    ((subject, details),) = site.run(
        "SELECT subject, details FROM operator_actions WHERE action = 'backup'"
    )
    assert (subject, details["rows"]) == (report.path, report.rows)


def test_a_backup_is_of_one_moment_whatever_is_written_meanwhile(
    site: Site, tmp_path: Path, settings: LazySettings
) -> None:
    # The row comes between our counts and pg_dump's first statement.
    script = (
        f'"{PROGRAMS}/psql" -qX "{site.url()}" '
        "-c \"INSERT INTO v1_notes VALUES (9999, 'late')\" || exit 9\n"
        'exec "$real" "$@"'
    )
    with programs(tmp_path / "bin", "pg_dump", script) as folder:
        settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"POSTGRES_BIN": str(folder)}
        report = backup_database(tmp_path / "a.dump")
    assert manifest_of(tmp_path / "a.dump").tables["public.v1_notes"] == 500
    assert site.run("SELECT count(*) FROM v1_notes") == [(501,)]
    text = subprocess.run(
        [PROGRAMS / "pg_restore", "--data-only", "--table=v1_notes", "--file=-", report.path],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "500\t" in text
    assert "late" not in text


def test_more_than_one_job_makes_a_folder(site: Site, tmp_path: Path) -> None:
    report = backup_database(tmp_path / "a.dump", jobs=2)
    assert report.format == "directory"
    files = {str(path.relative_to(report.path)) for path in Path(report.path).iterdir()}
    assert "toc.dat" in files
    assert files == set(manifest_of(tmp_path / "a.dump").files)
    assert names(tmp_path) == ["a.dump", "a.dump.json"]
    assert plan_restore(tmp_path / "a.dump").format == "directory"


def test_a_database_without_our_tables_is_backed_up_too(site: Site, tmp_path: Path) -> None:
    site.run("DROP TABLE operator_actions, django_migrations")
    backup_database(tmp_path / "v1.dump")
    assert manifest_of(tmp_path / "v1.dump").migrations == []


def test_the_default_path_is_in_the_project(settings: LazySettings, tmp_path: Path) -> None:
    settings.BASE_DIR = tmp_path
    assert default_path() == tmp_path / "backups" / "pre_migration.dump"


# --- An earlier backup ------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_earlier_backup_is_kept_with_its_manifest(
    site: Site, tmp_path: Path, jobs: int
) -> None:
    path = tmp_path / "a.dump"
    backup_database(path, jobs=jobs)
    site.run("DELETE FROM v1_notes WHERE id <= 100")
    second = backup_database(path)
    third = backup_database(path)
    assert second.earlier is not None
    assert third.earlier is not None
    assert re.fullmatch(r"a\.\d{8}T\d{6}\.dump", Path(second.earlier).name)
    rows = [
        manifest_of(Path(each)).tables["public.v1_notes"]
        for each in (second.earlier, third.earlier, path)
    ]
    assert rows == [500, 400, 400]
    for each in (second.earlier, third.earlier, path):
        assert plan_restore(Path(each)).checked  # whole, and with its own manifest
    assert len(names(tmp_path)) == 6


def test_what_is_no_backup_is_not_replaced(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "thesis.txt"
    file.write_text("ten years of work")
    with pytest.raises(InvalidArgument, match=r"thesis\.txt is there already, and is no backup"):
        backup_database(file)
    with pytest.raises(InvalidArgument, match="is there already"):
        backup_database(tmp_path)
    with pytest.raises(BackupFailed, match="cannot be made"):
        backup_database(file / "a.dump")
    with pytest.raises(BackupFailed, match="name too long"):
        backup_database(tmp_path / ("a" * 300))
    with pytest.raises(InvalidArgument, match="at least one job"):
        backup_database(tmp_path / "a.dump", jobs=0)
    assert names(tmp_path) == ["thesis.txt"]
    assert file.read_text() == "ten years of work"


# --- Kills ------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_any_step_every_backup_there_is_is_whole(
    site: Site, tmp_path: Path, manage: Manage
) -> None:
    path = tmp_path / "a.dump"
    backup_database(path)
    site.run("DELETE FROM v1_notes WHERE id <= 100")
    for name in STEPS:
        done = manage(
            "backup_database",
            str(path),
            DJANGO_SETTINGS_MODULE="tests.crash_settings",
            CRASH_AT=f"backup:{name}",
            DATABASE_URL=site.url(),
            POSTGRES_BIN=str(PROGRAMS),
        )
        assert done.returncode == -9, done.stderr
        whole = [plan_restore(dump) for dump in tmp_path.glob("*.dump")]
        assert 500 in [
            plan.manifest.tables["public.v1_notes"] for plan in whole if plan.manifest
        ], name
    last = backup_database(path)
    assert manifest_of(Path(last.path)).tables["public.v1_notes"] == 400
    assert not [name for name in names(tmp_path) if "partial" in name]


def test_a_pg_dump_that_outlived_its_backup_is_ended_by_the_next(
    site: Site, tmp_path: Path, manage: Manage
) -> None:
    # The backup is killed, and what it started goes on with a session of the same name.
    script = (
        'for each in "$@"; do case $each in --dbname=*) target=${each#--dbname=};; esac; done\n'
        "case $target in *passfile*) exit 9;; esac; kill -9 $PPID\n"
        f'exec "{PROGRAMS}/psql" -qX "$target" -c "SELECT pg_sleep(600)"'
    )
    at_work = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE application_name = 'cartrita backup' AND query LIKE 'SELECT pg_sleep%'"
    )
    with programs(tmp_path / "bin", "pg_dump", script) as folder:
        done = manage(
            "backup_database",
            str(tmp_path / "a.dump"),
            DATABASE_URL=site.url(),
            POSTGRES_BIN=str(folder),
        )
    assert done.returncode == -9
    assert len(names(tmp_path)) == 2  # bin, and the partial dump
    deadline = time.monotonic() + 30
    while site.run(at_work) != [(1,)]:
        assert time.monotonic() < deadline
    backup_database(tmp_path / "a.dump")
    assert site.run(at_work) == [(0,)]
    assert names(tmp_path) == ["a.dump", "a.dump.json", "bin"]


def test_sigterm_leaves_nothing(site: Site, tmp_path: Path, manage: Manage) -> None:
    done = manage(
        "backup_database",
        str(tmp_path / "a.dump"),
        DJANGO_SETTINGS_MODULE="tests.crash_settings",
        CRASH_AT="backup:read_back",
        CRASH_SIGNAL="SIGTERM",
        DATABASE_URL=site.url(),
        POSTGRES_BIN=str(PROGRAMS),
    )
    assert done.returncode == 130, done.stderr
    assert names(tmp_path) == []


def test_ctrl_c_leaves_nothing(site: Site, tmp_path: Path, settings: LazySettings) -> None:
    script = f'touch "{tmp_path}/started"; exec sleep 600'
    with programs(tmp_path / "bin", "pg_dump", script) as folder:
        settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"POSTGRES_BIN": str(folder)}

        def interrupt(label: str, done: int, total: int | None, unit: str) -> None:
            if label.startswith("Dumping"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            backup_database(tmp_path / "a.dump", progress=interrupt)
    assert names(tmp_path) == ["bin", "started"]


# --- One at a time ----------------------------------------------------------


def test_a_second_backup_of_the_database_or_into_the_folder_is_told_so(
    site: Site, tmp_path: Path, settings: LazySettings
) -> None:
    with site.connect() as holder, advisory_lock(holder, BACKUP_LOCK):
        with pytest.raises(LockHeld, match=f"pid {holder.info.backend_pid}"):
            backup_database(tmp_path / "a.dump")
        # Of another database, it may be at work at the same time.
        settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {
            "DIRECT_DATABASE_URL": site.url(name="site_template")
        }
        assert backup_database(tmp_path / "a.dump").database == "site_template"
    first, second = threading.Event(), threading.Event()

    def hold(label: str, done: int, total: int | None, unit: str) -> None:
        first.set()
        assert second.wait(60)

    def back_up() -> None:
        backup_database(tmp_path / "b.dump", progress=hold)
        connection.close()  # this thread's own

    thread = threading.Thread(target=back_up)
    thread.start()
    assert first.wait(60)
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"DIRECT_DATABASE_URL": ""}
    with pytest.raises(LockHeld, match="Another backup is being written"):
        backup_database(tmp_path / "c.dump")
    second.set()
    thread.join(60)
    assert names(tmp_path) == ["a.dump", "a.dump.json", "b.dump", "b.dump.json"]


# --- Programs ---------------------------------------------------------------


def fake(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True)
    program = folder / "pg_dump"
    program.write_text(f"#!/bin/sh\necho 'pg_dump (PostgreSQL) {version} (Debian {version}-1)'\n")
    program.chmod(0o755)
    return program


def test_a_program_older_than_the_server_is_passed_over_for_the_nearest(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path / "path", "15.13")
    fake(tmp_path / "18" / "bin", "18.6")
    fake(tmp_path / "19" / "bin", "19beta1")
    monkeypatch.setenv("PATH", str(tmp_path / "path"), prepend=os.pathsep)
    monkeypatch.setattr(
        programs_module, "INSTALLED", (f"{str(tmp_path).removeprefix('/')}/*/bin",)
    )
    monkeypatch.setattr(connection.client, "executable_name", "psql")
    for server, chosen, version in (
        (15, "path", "15.13"),
        (17, "18/bin", "18.6"),
        (19, "19/bin", "19"),
    ):
        found = programs_module.find_program("pg_dump", server)
        assert (found.path, found.version) == (str(tmp_path / chosen / "pg_dump"), version)
    # From 17 on it sets what a server of 16 does not know, and its dumps do.
    with pytest.raises(PackageMissing, match=r"needs a pg_dump of version 16; .*client-16"):
        programs_module.find_program("pg_dump", 16)


def test_no_program_new_enough_is_a_line_that_names_the_package(
    site: Site, tmp_path: Path, settings: LazySettings
) -> None:
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"POSTGRES_BIN": str(tmp_path)}
    with pytest.raises(PackageMissing, match=r"none was found.* postgresql-client-18"):
        backup_database(tmp_path / "a.dump")
    (tmp_path / "old").mkdir()
    old = fake(tmp_path / "old" / "bin", "15.13")
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"POSTGRES_BIN": str(old.parent)}
    with pytest.raises(PackageMissing, match=rf"{re.escape(str(old))} is 15\.13.*POSTGRES_BIN"):
        backup_database(tmp_path / "a.dump")
    assert names(tmp_path) == ["old"]


# --- Passwords, rights, disks -----------------------------------------------


@pytest.fixture
def locked(
    site: Site, tmp_path_factory: pytest.TempPathFactory, settings: LazySettings
) -> Iterator[Callable[[str], None]]:
    """A role that needs its password; the function makes it the one that backs up."""
    server = EmbeddedPostgres.from_settings()
    rules = server.folder / "pg_hba.conf"
    before = rules.read_text()
    with site.connect() as pg:
        pg.execute("DROP ROLE IF EXISTS locked")
        pg.execute("SET password_encryption = 'scram-sha-256'")
        pg.execute(sql.SQL("CREATE ROLE locked LOGIN PASSWORD {}").format(SECRET))
    rules.write_text("local all locked scram-sha-256\n" + before)

    def use(password: str) -> None:
        settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {
            "DIRECT_DATABASE_URL": site.url("locked", password)
        }

    site.run("SELECT pg_reload_conf()")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:  # until the postmaster has read it
        try:
            psycopg.connect(site.url("locked")).close()
        except psycopg.OperationalError:
            break
    yield use
    rules.write_text(before)
    site.run("SELECT pg_reload_conf()", "REASSIGN OWNED BY locked TO postgres")
    site.run("DROP OWNED BY locked", "DROP ROLE locked")


def test_the_password_is_nowhere_but_in_a_file_of_the_owner_s(
    site: Site,
    tmp_path: Path,
    settings: LazySettings,
    locked: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    locked(SECRET)
    site.run("GRANT pg_read_all_data TO locked")
    monkeypatch.setenv("PGPASSWORD", "another's")
    script = (
        f'printf "%s\\n" "$@" > "{tmp_path}/argv"; env > "{tmp_path}/env"\n'
        f'file=$(sed -n "s/.*passfile=\\([^ ]*\\).*/\\1/p" "{tmp_path}/argv")\n'
        f'ls -l "$file" > "{tmp_path}/mode"; exec "$real" "$@"'
    )
    with programs(tmp_path / "bin", "pg_dump", script) as folder:
        settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"POSTGRES_BIN": str(folder)}
        backup_database(tmp_path / "a.dump")
    told = (tmp_path / "argv").read_text() + (tmp_path / "env").read_text()
    assert "passfile=" in told
    assert SECRET not in told
    assert "another's" not in told
    assert (tmp_path / "mode").read_text().startswith("-rw------- ")
    assert not Path((tmp_path / "mode").read_text().split()[-1]).exists()
    assert SECRET not in manifest_path(tmp_path / "a.dump").read_text()


def test_a_wrong_password_is_one_line(
    site: Site, tmp_path: Path, locked: Callable[[str], None]
) -> None:
    locked("wrong" + SECRET)
    with pytest.raises(DatabaseUnreachable, match="password authentication failed") as raised:
        backup_database(tmp_path / "a.dump")
    assert SECRET not in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert names(tmp_path) == []


def test_a_table_that_the_role_may_not_read_is_named(
    site: Site, tmp_path: Path, locked: Callable[[str], None]
) -> None:
    locked(SECRET)
    with pytest.raises(PrivilegeMissing, match=r"locked may not read public\.\w+") as raised:
        backup_database(tmp_path / "a.dump")
    assert raised.value.exit_code == 5
    assert names(tmp_path) == []


def test_a_full_disk_is_one_line_and_the_earlier_backup_stays(
    site: Site, tmp_path: Path, manage: Manage
) -> None:
    path = tmp_path / "a.dump"
    backup_database(path)
    before = path.read_bytes()
    (tmp_path / "bin").mkdir()
    # The limit is for what pg_dump writes, as on a disk with so much room.
    for name in ("pg_restore", "psql"):
        (tmp_path / "bin" / name).symlink_to(PROGRAMS / name)
    limited = tmp_path / "bin" / "pg_dump"
    limited.write_text(f'#!/bin/sh\ntrap "" XFSZ\nulimit -f 16\nexec "{PROGRAMS}/pg_dump" "$@"\n')
    limited.chmod(0o755)
    done = manage(
        "backup_database",
        str(path),
        DATABASE_URL=site.url(),
        POSTGRES_BIN=str(tmp_path / "bin"),
        LOG_LEVEL="WARNING",
    )
    assert done.returncode == 1
    *progress, line = done.stderr.splitlines()
    assert {told.split(":")[0] for told in progress} <= {"Dumping"}  # if it took long enough
    assert "could not be made: pg_dump: could not" in line
    assert "every earlier backup are as they were" in line
    assert path.read_bytes() == before
    assert names(tmp_path) == ["a.dump", "a.dump.json", "bin"]


# --- The command ------------------------------------------------------------


def test_the_command_prints_what_it_made_and_how_to_bring_it_back(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "a b.dump")
    call_command("backup_database", path)
    out = capsys.readouterr().out
    assert out.startswith(f"{path}: database {site.name}, ")
    assert f"To bring it back: manage.py restore_backup '{path}'\n" in out
    call_command("backup_database", path, "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["path"] == path
    assert Path(report["earlier"]).exists()
    with pytest.raises(CommandError, match="at least one job"):
        call_command("backup_database", path, "--jobs=0")
