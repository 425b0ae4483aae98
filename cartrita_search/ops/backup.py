"""A backup of the database: dumped, read back in full, described by a manifest, kept."""

from __future__ import annotations

import fcntl
import glob
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections
from psycopg import sql

from ..db import (
    BACKUP_LOCK,
    advisory_lock,
    direct_connection,
    direct_parameters,
    one_row,
    quoted,
)
from ..errors import BackupFailed, InvalidArgument, LockHeld, PrivilegeMissing, RestoreRefused
from . import dumps
from .actions import record_action
from .database_properties import database_properties
from .dumps import MIB, Manifest, Progress, manifest_path
from .programs import Program, connection_string, find_program, run
from .steps import step

logger = logging.getLogger(__name__)

STEPS = ("dump", "read_back", "keep", "publish", "manifest", "record")

#: pg_dump's sessions, and ours that holds the snapshot; cleanup_stuck_queries spares them.
APPLICATION = "cartrita backup"
_UNTOUCHED = "The database and every earlier backup are as they were."


@dataclass(frozen=True)
class BackupReport:
    """A backup that was made."""

    path: str
    manifest: str
    database: str
    #: "custom", one file; or "directory", a folder, of several jobs.
    format: str
    bytes: int
    tables: int
    rows: int
    server_version: str
    pg_dump_version: str
    seconds: float
    #: Where an earlier backup of that name is now; None if there was none.
    earlier: str | None


def default_path() -> Path:
    """``backups/pre_migration.dump`` in the project."""
    return Path(settings.BASE_DIR) / "backups" / "pre_migration.dump"


def backup_database(
    path: Path | None = None,
    *,
    jobs: int = 1,
    using: str = DEFAULT_DB_ALIAS,
    progress: Progress | None = None,
) -> BackupReport:
    """Write a backup of the whole database to ``path``, while it is in use.

    The backup appears under its name only when it has been read back in full. One job
    makes a single file; more make a folder (pg_dump's directory format). Of an earlier
    backup of that name nothing is lost: it is renamed by the time it was taken. Killed
    at any point, what is there under either name is whole, and the next run clears up.

    Raises `InvalidArgument`, `PackageMissing`, `DatabaseUnreachable`, `PoolerRefused`,
    `LockHeld` (another backup of this database, or into this folder), `PrivilegeMissing`,
    `BackupFailed`; after any of them there is nothing new at ``path``.
    """
    path = (path or default_path()).absolute()
    report = progress or (lambda what, done, total, unit: None)
    if jobs < 1:
        raise InvalidArgument("A backup takes at least one job.", "Nothing was changed.")
    _check_place(path)
    started = monotonic()
    with (
        direct_connection(APPLICATION, using=using) as connection,
        advisory_lock(connection, BACKUP_LOCK),
        _sole_writer(path.parent),
    ):
        _end_leftovers(connection, path)
        server = connection.info.server_version // 10_000
        pg_dump = find_program("pg_dump", server, using=using)
        pg_restore = find_program("pg_restore", server, using=using)
        partial = path.with_name(f"{path.name}.partial-{secrets.token_hex(4)}")
        try:
            step("backup", "dump", str(path))
            with _failing(path), _snapshot(connection) as snapshot:
                described = _describe(connection, pg_dump.version)
                if jobs == 1:
                    partial.touch(mode=0o600)  # pg_dump keeps the mode
                with connection_string(direct_parameters(using), APPLICATION) as target:
                    run(
                        pg_dump,
                        [
                            f"--format={'custom' if jobs == 1 else 'directory'}",
                            f"--jobs={jobs}",
                            f"--snapshot={snapshot}",
                            "--no-password",
                            f"--file={partial}",
                            f"--dbname={target}",
                        ],
                        _failure(path),
                        poll=_row_count(connection, described["tables"], report),
                    )
            step("backup", "read_back", str(path))
            with _failing(path):
                manifest = _verified(partial, described, pg_restore, report, path)
                dumps.make_durable(partial)
                earlier = _publish(partial, path, manifest)
        except BaseException:
            _remove(partial)
            _remove(manifest_path(partial))
            raise
    report_ = BackupReport(
        path=str(path),
        manifest=str(manifest_path(path)),
        database=manifest.database,
        format="custom" if jobs == 1 else "directory",
        bytes=manifest.bytes,
        tables=len(manifest.tables),
        rows=manifest.rows,
        server_version=manifest.server_version,
        pg_dump_version=manifest.pg_dump_version,
        seconds=round(monotonic() - started, 1),
        earlier=str(earlier) if earlier else None,
    )
    step("backup", "record", str(path))
    record_if_possible("backup", report_.path, _recorded(report_), using)
    return report_


def _recorded(report: BackupReport) -> dict[str, Any]:
    return {
        "bytes": report.bytes,
        "rows": report.rows,
        "tables": report.tables,
        "seconds": report.seconds,
    }


def record_if_possible(action: str, subject: str, details: dict[str, Any], using: str) -> None:
    """`record_action`, where the table is there and this role may write to it.

    The work is done by then: a database of v1 has no such table, and lacks nothing.
    """
    try:
        with connections[using].cursor() as cursor:
            cursor.execute("SELECT to_regclass(%s)", ["public.operator_actions"])
            (table,) = cursor.fetchone()
        if table is not None:
            record_action(action, subject, details=details, using=using)
    except DatabaseError as error:
        logger.warning("%s of %s was not recorded: %s", action, subject, error)


def _check_place(path: Path) -> None:
    """Raise `InvalidArgument` unless a backup may be written to ``path``."""
    try:
        is_there = path.exists()
    except OSError as error:
        raise _failure(path)(error.strerror or str(error)) from error
    if is_there:
        try:
            dumps.dump_format(path)
        except RestoreRefused as error:
            if not (path.is_file() and path.stat().st_size == 0):
                raise InvalidArgument(
                    f"{path} is there already, and is no backup.",
                    "Nothing was changed. Name another file.",
                ) from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise BackupFailed(
            f"The folder {path.parent} cannot be made: {error.strerror}.", _UNTOUCHED
        ) from error


@contextmanager
def _sole_writer(folder: Path) -> Iterator[None]:
    """Keep two backups from clearing up each other's files; the lock ends with the process."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise BackupFailed(
            f"The folder {folder} cannot be read: {error.strerror}.", _UNTOUCHED
        ) from error
    try:
        with suppress(OSError):  # a network's file system may know no locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockHeld(
                    f"Another backup is being written to {folder}.",
                    "Nothing was changed. Run this again when it has finished.",
                ) from None
        yield
    finally:
        os.close(descriptor)


def _end_leftovers(connection: psycopg.Connection, path: Path) -> None:
    """Clear up after a backup that was killed: its pg_dump may be at work still.

    While we hold the lock no other backup of this database can be at it.
    """
    end_sessions_of(connection, APPLICATION)
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.partial-*"):
        _remove(leftover)


def end_sessions_of(connection: psycopg.Connection, application: str) -> None:
    """End this role's other sessions of that name in this database, and wait for them to go."""
    connection.execute(
        """
        SELECT pg_terminate_backend(a.pid, 10000) FROM pg_stat_activity AS a
        WHERE a.datname = current_database() AND a.usename = current_user
            AND a.application_name = %s AND a.pid <> pg_backend_pid()
        """,
        [application],
    )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _snapshot(connection: psycopg.Connection) -> Iterator[str]:
    """A snapshot for pg_dump and our own counts alike, for as long as the block runs."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        # It is idle for as long as pg_dump works, and must see every row.
        connection.execute(
            """
            SELECT set_config(name, '0', true) FROM pg_settings
            WHERE name IN ('idle_in_transaction_session_timeout', 'statement_timeout',
                           'transaction_timeout')
            """
        )
        connection.execute("SET LOCAL row_security = off")
        (snapshot,) = one_row(connection, "SELECT pg_export_snapshot()")
        yield snapshot


def _describe(connection: psycopg.Connection, pg_dump_version: str) -> dict[str, Any]:
    """The manifest but for the files, in the snapshot."""
    info = connection.info
    properties = database_properties(connection, info.dbname) or {}
    tables = count_rows(connection)  # first, as it tells what this role may not read
    (size,) = one_row(connection, "SELECT pg_database_size(current_database())")
    extensions = connection.execute(
        "SELECT extname, extversion FROM pg_extension WHERE extname <> 'plpgsql' ORDER BY 1"
    ).fetchall()
    roles = connection.execute(
        """
        SELECT DISTINCT r.rolname FROM pg_roles AS r
        WHERE r.oid IN (
            SELECT s.refobjid FROM pg_shdepend AS s
            WHERE s.refclassid = 'pg_authid'::regclass
                AND s.dbid = (SELECT d.oid FROM pg_database AS d
                              WHERE d.datname = current_database())
            UNION ALL
            -- What belongs to the superuser of initdb is in no pg_shdepend.
            SELECT c.relowner FROM pg_class AS c WHERE c.oid >= 16384)
        ORDER BY 1
        """
    ).fetchall()
    return {
        "format": dumps.MANIFEST_FORMAT,
        "database": info.dbname,
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "server_version": ".".join(map(str, divmod(info.server_version, 10_000))),
        "pg_dump_version": pg_dump_version,
        "database_bytes": size,
        "extensions": dict(extensions),
        "migrations": _migrations(connection),
        "tables": tables,
        "roles": sorted({properties["owner"], *(role for (role,) in roles)}),
        "properties": properties,
    }


def _migrations(connection: psycopg.Connection) -> list[str]:
    (table,) = one_row(connection, "SELECT to_regclass('public.django_migrations')")
    if table is None:
        return []
    rows = connection.execute("SELECT app, name FROM public.django_migrations ORDER BY id")
    return [f"{app}.{name}" for app, name in rows.fetchall()]


def count_rows(connection: psycopg.Connection, counted: Progress | None = None) -> dict[str, int]:
    """Rows of every table that a dump holds, as "schema.table".

    Raises `PrivilegeMissing` for one that this role may not read.
    """
    tables = connection.execute(
        """
        SELECT n.nspname, c.relname
        FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.relkind = 'r' AND c.relpersistence <> 't'
            AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'
            AND NOT EXISTS (SELECT FROM pg_depend AS d
                            WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                                AND d.deptype = 'e')
        ORDER BY 1, 2
        """
    ).fetchall()
    counts = {}
    for number, (schema, table) in enumerate(tables, 1):
        query = sql.SQL("SELECT count(*) FROM ONLY {}").format(sql.Identifier(schema, table))
        try:
            (counts[f"{schema}.{table}"],) = one_row(connection, query)
        except psycopg.errors.InsufficientPrivilege as error:
            raise PrivilegeMissing(
                f"Role {connection.info.user} may not read {schema}.{table}, and a backup takes"
                " every table.",
                f"{_UNTOUCHED} Back up as the tables' owner, or: GRANT pg_read_all_data TO"
                f" {quoted(connection.info.user)};",
            ) from error
        if counted is not None:
            counted("Counting rows", number, len(tables), "tables")
    return counts


def _row_count(
    connection: psycopg.Connection, tables: dict[str, int], progress: Progress
) -> Callable[[], None]:
    """A function that reports how many rows pg_dump has copied, as the server tells."""
    total = sum(tables.values())
    copied: dict[str, int] = {}

    def poll() -> None:
        rows = connection.execute(
            """
            SELECT n.nspname || '.' || c.relname, p.tuples_processed
            FROM pg_stat_clear_snapshot(), pg_stat_progress_copy AS p
            JOIN pg_class AS c ON c.oid = p.relid
            JOIN pg_namespace AS n ON n.oid = c.relnamespace
            WHERE p.datname = current_database() AND p.command = 'COPY TO'
            """
        ).fetchall()
        now: dict[str, int] = dict(rows)
        # A table that was being copied and is no more is done.
        copied.update({name: tables.get(name, 0) for name in copied if name not in now})
        copied.update(now)
        progress("Dumping", min(total, sum(copied.values())), total, "rows")

    return poll


def _failure(path: Path) -> Callable[[str], BackupFailed]:
    def failed(said: str) -> BackupFailed:
        return BackupFailed(f"The backup {path} could not be made: {said}.", _UNTOUCHED)

    return failed


@contextmanager
def _failing(path: Path) -> Iterator[None]:
    """What the disk or the server refuse meanwhile, as `BackupFailed`."""
    try:
        yield
    except OSError as error:
        raise _failure(path)(error.strerror or str(error)) from error
    except psycopg.Error as error:
        raise _failure(path)(" ".join(str(error).split())) from error


def _verified(
    partial: Path, described: dict[str, Any], pg_restore: Program, progress: Progress, path: Path
) -> Manifest:
    """Read the dump back to its end, and take its checksums."""
    files = dumps.dump_files(partial)
    total = sum(file.stat().st_size for file in files.values()) // MIB
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress("Reading back", done // MIB, total, "MiB")

    dumps.read_back(partial, pg_restore, _failure(path))
    return Manifest(**described, files=dumps.digest(files, advance))


def _publish(partial: Path, path: Path, manifest: Manifest) -> Path | None:
    """Put the dump and its manifest in place; returns where an earlier one went.

    Each step leaves a dump with its own manifest or none, never with another's.
    """
    written = manifest_path(partial)
    written.touch(mode=0o600)
    written.write_text(manifest.to_json(), encoding="utf-8")
    dumps.make_durable(written)

    step("backup", "keep", str(path))
    earlier = None
    if path.exists():
        # By the time of the dump, so that a second try after a kill finds the same name.
        taken = datetime.fromtimestamp(_taken(path), UTC)
        earlier = path.with_name(f"{path.stem}.{taken:%Y%m%dT%H%M%S}{path.suffix}")
        while earlier.exists():
            earlier = earlier.with_name(f"{earlier.stem}a{path.suffix}")
        if manifest_path(path).exists():
            manifest_path(path).rename(manifest_path(earlier))
        path.rename(earlier)
    else:
        manifest_path(path).unlink(missing_ok=True)
    step("backup", "publish", str(path))
    partial.rename(path)
    step("backup", "manifest", str(path))
    written.rename(manifest_path(path))
    dumps.make_durable(path)
    return earlier


def _taken(path: Path) -> float:
    return (path / "toc.dat" if path.is_dir() else path).stat().st_mtime
