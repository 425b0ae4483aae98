"""The rollback: a backup restored into a database beside, verified, and swapped in.

The database in use is not touched before the swap, and is kept after it. `pg_restore
--clean` into the database in use, killed half-way, leaves empty tables; this leaves one
whole database under the name at every moment.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg
from django.db import DEFAULT_DB_ALIAS, connections
from psycopg import sql

from ..db import (
    BACKUP_LOCK,
    MIGRATION_LOCK,
    RESTORE_LOCK,
    advisory_lock,
    direct_parameters,
    one_row,
)
from ..errors import InvalidArgument, PrivilegeMissing, RestoreFailed, RestoreRefused
from . import dumps
from .backup import count_rows, default_path, end_sessions_of, record_if_possible
from .database_properties import apply_properties, creation, database_properties
from .databases import (
    APPLICATION,
    KEPT,
    KeptDatabase,
    database_size,
    drop_database,
    drop_statement,
    kept_databases,
    maintenance_connection,
    patient_connection,
    scratch_databases,
    scratch_name,
    slots_left_behind,
    swap,
    target_database,
)
from .dumps import MIB, Contents, Manifest, Progress
from .programs import Program, connection_string, find_program, run
from .restore_checks import (
    check_later_objects,
    check_name,
    check_prepared,
    check_rights,
    check_roles,
    check_space,
    check_tables,
    check_version,
    checked_contents,
    table_names,
    unusable,
    what_is_checked,
)
from .steps import step

STEPS = ("create", "load", "verify", "settings", "swap", "commit", "record")
#: The steps of a restore in place, and of going back to a database that was kept.
IN_PLACE_STEPS = ("load", "record")
BACK_STEPS = ("swap", "commit", "record")

#: Statistics for the planner, and the visibility map, without which a keyword search reads
#: every candidate's row; vectors, which are aside in TOAST tables, have no use for that.
_MAKE_READY = "VACUUM (ANALYZE, PROCESS_TOAST false)"


@dataclass(frozen=True)
class RestorePlan:
    """What a restore will do; all was checked that can be without touching anything."""

    path: str
    #: One of `dumps.FORMATS`.
    format: str
    #: The database that is replaced.
    database: str
    in_place: bool
    jobs: int
    #: When the backup was taken; None: not known.
    taken_at: str | None
    backup_bytes: int
    #: Of the backup; None: not known.
    rows: int | None
    tables: int
    #: The database's size now; None: there is none of that name.
    database_bytes: int | None
    #: What was checked, and what cannot be without a manifest.
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]
    kept: tuple[KeptDatabase, ...]
    #: What has to be seen to afterwards, as is known before.
    slots: tuple[str, ...]
    using: str
    manifest: Manifest | None
    contents: Contents
    program: Program

    def as_json(self) -> dict[str, Any]:
        """What of it is for others to read."""
        inner = {"using", "manifest", "contents", "program"}
        return {key: value for key, value in asdict(self).items() if key not in inner}

    def lines(self, *, drop_old: bool) -> list[str]:
        """The plan in words."""
        now = "is not there" if self.database_bytes is None else f"has {_mib(self.database_bytes)}"
        taken = f", taken {self.taken_at}" if self.taken_at else ""
        rows = f", {self.rows} rows" if self.rows is not None else ""
        lines = [
            f"Backup {self.path}: {self.format} format{taken}, {_mib(self.backup_bytes)},"
            f" {self.tables} tables{rows}.",
            f"Checks: {', '.join(self.checked)}.",
        ]
        if self.unchecked:
            lines.append(f"No manifest, so not checked: {', '.join(self.unchecked)}.")
        lines.append(f"Database {self.database} {now}.")
        if self.in_place:
            lines.append("It is overwritten in a single transaction; nothing of it is kept.")
        else:
            old = "dropped" if drop_old else f"kept as {self.database}{KEPT}<time>"
            lines.append(
                f"The backup is loaded beside it by {self.jobs} jobs, verified, and takes its"
                f" name; the former database is {old}."
            )
        lines += [f"To be seen to afterwards: {slot}" for slot in self.slots]
        lines += [
            f"Kept from an earlier restore: {each.name}, {_mib(each.bytes)}."
            f" To drop it: {drop_statement(each.name)}"
            for each in self.kept
        ]
        return lines


@dataclass(frozen=True)
class RestoreReport:
    """A restore that was done."""

    #: The backup, or the name of the database that was kept.
    path: str
    database: str
    in_place: bool
    #: None where they were not counted, on the way back to a database that was kept.
    tables: int | None
    rows: int | None
    seconds: float
    #: Where the former database is now; None: dropped, or overwritten in place.
    kept: str | None
    #: The command that brings the former database back; None where it is not kept.
    go_back: str | None
    #: The statement that drops it, for when it is needed no more.
    drop_kept: str | None
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]
    #: What the database's owner or a superuser has to see to by hand.
    warnings: tuple[str, ...]


def plan_restore(
    path: Path | None = None,
    *,
    jobs: int | None = None,
    in_place: bool = False,
    of_database: str | None = None,
    using: str = DEFAULT_DB_ALIAS,
    progress: Progress | None = None,
) -> RestorePlan:
    """Check the backup at ``path`` and the server, in full, and touch nothing.

    ``jobs`` processes will load it, as many as there are CPUs by default, four at most.
    ``of_database`` is the name of the database that the backup is of, where that is meant
    to be another one.

    Raises `RestoreRefused`, `PrivilegeMissing`, `PackageMissing`, `DatabaseUnreachable`,
    `PoolerRefused` or `InvalidArgument`.
    """
    path = (path or default_path()).absolute()
    jobs = _jobs(jobs, in_place=in_place)
    kind = dumps.dump_format(path)
    manifest = dumps.read_manifest(path)
    if manifest is not None:
        dumps.check_against(manifest, path, progress or _silent)
    target = target_database(using)
    # In place, no other database need be open to this role.
    place = (
        patient_connection(using, target) if in_place else maintenance_connection(target, using)
    )
    with place as connection:
        server = connection.info.server_version // 10_000
        properties = database_properties(connection, target)
        pg_restore = find_program("pg_restore", server, using=using)
        program = find_program("psql", server, using=using) if kind == "plain" else pg_restore
        contents = checked_contents(path, kind, manifest, pg_restore)
        check_version(path, manifest, contents, server)
        check_name(path, manifest, contents, target, of_database)
        check_roles(connection, manifest)
        if in_place:
            if kind == "plain":
                raise RestoreRefused(
                    f"{path} is plain SQL, which cannot be restored in place.",
                    "Nothing was touched. Restore without --in-place.",
                )
        else:
            check_rights(connection, target, properties)
            check_prepared(connection, target)
            check_space(connection, manifest)
        kept = kept_databases(connection, target)
        size = database_size(connection, target) if properties else None
        slots = [] if in_place else slots_left_behind(connection, target)
    if properties:
        with patient_connection(using, target) as connection:
            check_tables(connection, path, manifest, contents)
            if in_place:
                check_later_objects(
                    connection, path, manifest, contents, pg_restore=pg_restore, using=using
                )
    files = dumps.dump_files(path).values()
    checked, unchecked = what_is_checked(kind, manifest)
    return RestorePlan(
        path=str(path),
        format=kind,
        database=target,
        in_place=in_place,
        jobs=jobs if kind in {"custom", "directory"} and not in_place else 1,
        taken_at=manifest.taken_at if manifest else None,
        backup_bytes=sum(file.stat().st_size for file in files),
        rows=manifest.rows if manifest else None,
        tables=len(manifest.tables if manifest else contents.tables),
        database_bytes=size,
        checked=checked,
        unchecked=unchecked,
        kept=tuple(kept),
        slots=tuple(slots),
        using=using,
        manifest=manifest,
        contents=contents,
        program=program,
    )


def restore_backup(
    plan: RestorePlan, *, drop_old: bool = False, progress: Progress | None = None
) -> RestoreReport:
    """Do as `plan_restore` said.

    Beside: the backup is loaded into a new database, its rows are counted and compared,
    and it takes the name by two renames in one transaction, which ends every session of
    the former database. That one stays as ``<name>__before_<time>`` unless ``drop_old``.
    Killed at any point, one whole database answers under the name, and the next run clears
    up. In place: in a single transaction, so all or nothing.

    Raises `LockHeld` while a migration, a backup or another restore is at work, and
    `RestoreFailed` or `PrivilegeMissing`, after which the database is as it was.
    """
    started = monotonic()
    restore = _restore_in_place if plan.in_place else _restore_beside
    kept, rows, warnings = restore(plan, drop_old, progress or _silent)
    report = RestoreReport(
        path=plan.path,
        database=plan.database,
        in_place=plan.in_place,
        tables=len(rows),
        rows=sum(rows.values()),
        seconds=round(monotonic() - started, 1),
        kept=kept,
        go_back=_go_back(kept),
        drop_kept=drop_statement(kept) if kept else None,
        checked=plan.checked,
        unchecked=plan.unchecked,
        warnings=tuple(warnings),
    )
    step("restore", "record", plan.path)
    details = {"rows": report.rows, "seconds": report.seconds, "kept": kept}
    record_if_possible("restore", plan.path, details, plan.using)
    return report


def go_back(name: str, *, using: str = DEFAULT_DB_ALIAS) -> RestoreReport:
    """Give the name back to a database that a restore kept, ``<name>__before_<time>``.

    The database that has the name now is kept in its turn. Raises `InvalidArgument` for
    any other name, and what `restore_backup` raises.
    """
    started = monotonic()
    target = target_database(using)
    with (
        maintenance_connection(target, using) as connection,
        advisory_lock(connection, RESTORE_LOCK),
    ):
        known = [kept.name for kept in kept_databases(connection, target)]
        if name not in known:
            raise InvalidArgument(
                f"{name} is no database kept by a restore of {target};"
                f" there is: {', '.join(known) or 'none'}.",
                "Nothing was changed.",
            )
        properties = database_properties(connection, target)
        check_rights(connection, target, properties)
        check_prepared(connection, target)
        with (
            _failing(name, target),
            _nobody_at_work(target, using, exists=properties is not None) as release,
        ):
            warnings = slots_left_behind(connection, target)
            release()
            kept = swap(connection, target, name, using, exists=properties is not None)
    step("restore", "record", name)
    record_if_possible("restore", name, {"kept": kept}, using)
    return RestoreReport(
        path=name,
        database=target,
        in_place=False,
        tables=None,
        rows=None,
        seconds=round(monotonic() - started, 1),
        kept=kept,
        go_back=_go_back(kept),
        drop_kept=drop_statement(kept) if kept else None,
        checked=(),
        unchecked=(),
        warnings=tuple(warnings),
    )


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"


def _silent(what: str, done: int, total: int | None, unit: str) -> None:
    """No progress wanted."""


def _jobs(jobs: int | None, *, in_place: bool) -> int:
    if jobs is None:
        return min(4, os.cpu_count() or 1)
    if jobs < 1 or (in_place and jobs > 1):
        raise InvalidArgument(
            "A restore takes at least one job, and in place, in one transaction, just one.",
            "Nothing was touched.",
        )
    return jobs


# --- Beside -----------------------------------------------------------------


@contextmanager
def _nobody_at_work(target: str, using: str, *, exists: bool) -> Iterator[Callable[[], None]]:
    """Keep migrations and backups out of ``target``, until the function yielded is called."""
    with ExitStack() as stack:
        if exists:
            own = stack.enter_context(patient_connection(using, target))
            for key in (MIGRATION_LOCK, BACKUP_LOCK):
                stack.enter_context(advisory_lock(own, key))
        yield stack.close


def _restore_beside(
    plan: RestorePlan, drop_old: bool, progress: Progress
) -> tuple[str | None, dict[str, int], list[str]]:
    target, using = plan.database, plan.using
    with (
        maintenance_connection(target, using) as connection,
        advisory_lock(connection, RESTORE_LOCK),
    ):
        present = database_properties(connection, target)
        with (
            _failing(plan.path, target),
            _nobody_at_work(target, using, exists=present is not None) as release,
        ):
            step("restore", "create", target)
            for leftover in scratch_databases(connection, target):
                drop_database(connection, leftover)
            scratch = scratch_name(target)
            # The database's own properties outlive a restore. The backup's serve where
            # there is no database.
            properties = present or (plan.manifest.properties if plan.manifest else None)
            try:
                _create(connection, scratch, properties, plan)
                step("restore", "load", scratch)
                _load(connection, scratch, plan, progress)
                step("restore", "verify", scratch)
                rows = _verify(scratch, plan, progress)
                step("restore", "settings", scratch)
                warnings = apply_properties(connection, scratch, properties) if properties else []
                if not drop_old:
                    warnings += slots_left_behind(connection, target)
                release()
                kept = swap(connection, target, scratch, using, exists=present is not None)
            except BaseException:
                with suppress(psycopg.Error):  # the connection may be lost; the next run does it
                    drop_database(connection, scratch)
                raise
        if kept and drop_old:
            try:
                drop_database(connection, kept)
                kept = None
            except psycopg.Error as error:
                warnings.append(f"{kept} could not be dropped: {' '.join(str(error).split())}")
    return kept, rows, warnings


@contextmanager
def _failing(path: str, database: str) -> Iterator[None]:
    """What the server refuses meanwhile, as `RestoreFailed`."""
    try:
        yield
    except psycopg.Error as error:
        raise _failure(path, database)(" ".join(str(error).split())) from error


def _failure(path: str, database: str) -> Callable[[str], RestoreFailed]:
    def failed(said: str) -> RestoreFailed:
        return RestoreFailed(
            f"The restore of {path} failed: {said}.",
            f"Database {database} is as it was, and nothing is left over.",
        )

    return failed


def _create(
    connection: psycopg.Connection,
    scratch: str,
    properties: dict[str, Any] | None,
    plan: RestorePlan,
) -> None:
    if properties is None:
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'")
        connection.execute(statement.format(sql.Identifier(scratch)))
    else:
        connection.execute(creation(scratch, properties))
    with patient_connection(plan.using, scratch) as own:
        for extension in sorted(plan.contents.extensions):
            _try_extension(own, extension, plan)


def _try_extension(connection: psycopg.Connection, extension: str, plan: RestorePlan) -> None:
    """Create it and take that back, to tell at once, and clearly, what is missing."""
    statement = sql.SQL("CREATE EXTENSION IF NOT EXISTS {} CASCADE")
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement.format(sql.Identifier(extension)))
    except psycopg.errors.InsufficientPrivilege as error:
        raise PrivilegeMissing(
            f"Role {connection.info.user} may not create the extension {extension} in a new"
            " database.",
            f"Database {plan.database} is as it was. Restore as a superuser, or with --in-place,"
            " which keeps the extension.",
        ) from error
    except psycopg.errors.FeatureNotSupported as error:  # no such extension on the server
        raise RestoreRefused(
            f"The backup needs the extension {extension}, which this server does not offer.",
            f"Database {plan.database} is as it was. Install the server's package"
            " (of vector, Debian's postgresql-N-pgvector).",
        ) from error


def _load(
    connection: psycopg.Connection, scratch: str, plan: RestorePlan, progress: Progress
) -> None:
    expected = plan.manifest.database_bytes if plan.manifest else (plan.database_bytes or 0)
    total = max(1, expected // MIB)

    def poll() -> None:
        progress("Restoring", min(total, database_size(connection, scratch) // MIB), total, "MiB")

    with _program_connection(plan, scratch) as target:
        if plan.format == "plain":
            arguments = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", f"--file={plan.path}"]
        else:
            arguments = ["--exit-on-error", f"--jobs={plan.jobs}", plan.path]
        run(
            plan.program,
            ["--no-password", f"--dbname={target}", *arguments],
            _failure(plan.path, plan.database),
            poll=poll,
        )
    progress("Restoring", total, total, "MiB")


@contextmanager
def _program_connection(plan: RestorePlan, database: str) -> Iterator[str]:
    parameters = direct_parameters(plan.using)
    # A role may be read-only by its settings, so that nobody writes by mistake.
    options = f"{parameters.get('options', '')} -c default_transaction_read_only=off".strip()
    with connection_string(
        parameters | {"dbname": database, "options": options}, APPLICATION
    ) as target:
        yield target


def _verify(scratch: str, plan: RestorePlan, progress: Progress) -> dict[str, int]:
    """Statistics for the planner, and the rows of every table as the manifest has them."""
    with patient_connection(plan.using, scratch) as connection:
        connection.execute(_MAKE_READY)
        rows = count_rows(connection, progress)
        present = table_names(connection)
        installed = {
            name for (name,) in connection.execute("SELECT extname FROM pg_extension").fetchall()
        }
    if missing := plan.contents.extensions - installed:
        raise _failure(plan.path, plan.database)(
            f"extensions are missing: {', '.join(sorted(missing))}"
        )
    expected = plan.manifest.tables if plan.manifest else {}
    wrong = [
        f"{table} has {rows.get(table, 0)} rows instead of {count}"
        for table, count in expected.items()
        if rows.get(table) != count
    ]
    if wrong:
        raise _failure(plan.path, plan.database)("; ".join(wrong[:5]))
    if absent := plan.contents.beyond(present):
        raise _failure(plan.path, plan.database)(f"tables are missing: {', '.join(absent[:5])}")
    return rows


def _go_back(kept: str | None) -> str | None:
    return f"manage.py restore_backup --back-to {shlex.quote(kept)}" if kept else None


# --- In place ---------------------------------------------------------------


def _restore_in_place(
    plan: RestorePlan, drop_old: bool, progress: Progress
) -> tuple[None, dict[str, int], list[str]]:
    connections.close_all()  # a transaction of ours would be in the way

    def poll() -> None:
        who = _in_the_way(connection)
        progress(f"Waiting for {who}" if who else "Restoring in place", 0, None, "")

    with (
        _failing(plan.path, plan.database),
        patient_connection(plan.using, plan.database) as connection,
        advisory_lock(connection, MIGRATION_LOCK),
        advisory_lock(connection, BACKUP_LOCK),
        tempfile.TemporaryDirectory(prefix="cartrita-") as folder,
    ):
        end_sessions_of(connection, APPLICATION)  # of a restore that was killed
        listing = Path(folder) / "contents"
        path = Path(plan.path)
        listing.write_text(
            dumps.list_without_extensions(path, plan.program, unusable(path)), encoding="utf-8"
        )
        step("restore", "load", plan.database)
        with _program_connection(plan, plan.database) as target:
            run(
                plan.program,
                [
                    "--clean",
                    "--if-exists",
                    "--single-transaction",
                    "--exit-on-error",
                    "--no-password",
                    f"--use-list={listing}",
                    f"--dbname={target}",
                    plan.path,
                ],
                _failure(plan.path, plan.database),
                poll=poll,
            )
        try:
            renew_cache_identity(connection)
            connection.execute(_MAKE_READY)
            rows, warnings = count_rows(connection), []
        except psycopg.Error as error:  # the restore is committed by now
            rows, warnings = {}, [f"{_MAKE_READY}: {' '.join(str(error).split())}"]
    return None, rows, warnings


def _in_the_way(connection: psycopg.Connection) -> str:
    """Whose locks on tables a restore in place waits for; "" for nobody's."""
    rows = connection.execute(
        """
        SELECT format('pid %%s (role %%s, %%s)', b.pid, a.usename, nullif(a.application_name, ''))
        FROM pg_stat_activity AS r
        CROSS JOIN unnest(pg_blocking_pids(r.pid)) AS b (pid)
        LEFT JOIN pg_stat_activity AS a ON a.pid = b.pid
        WHERE r.datname = current_database() AND r.application_name = %s
        ORDER BY a.xact_start
        """,
        [APPLICATION],
    ).fetchall()
    return ", ".join(each for (each,) in rows)


def renew_cache_identity(connection: psycopg.Connection) -> None:
    """Have no cached result of before be found again.

    A restore beside needs none of this: the database's OID is another.
    """
    (function,) = one_row(connection, "SELECT to_regproc('public.renew_cache_identity')")
    if function is not None:
        connection.execute("SELECT public.renew_cache_identity()")
