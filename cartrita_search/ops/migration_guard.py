"""``migrate`` for a database in use: one at a time, patient with locks, held to its record.

Work goes over connections of the server itself, past any pooler: one holds the advisory
lock and watches who is in the way, the other migrates. Both are told apart from the
application's by their name, "cartrita migrate".
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import psycopg
from django.core.management.commands import migrate as django_migrate
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.migration import Migration
from django.db.migrations.state import ProjectState

from ..adoption import SetAside, all_set_aside, obstacle
from ..conf import search_settings
from ..db import (
    MIGRATION_LOCK,
    Requirement,
    advisory_lock,
    direct_connection,
    direct_parameters,
    missing_requirement,
)
from ..errors import (
    DatabaseUnreachable,
    InvalidArgument,
    LockHeld,
    MigrationDrift,
    NotMigrated,
    PrivilegeMissing,
)
from ..migration_operations import UNFINISHED, RunSQLFile, migration_checksum
from .actions import record_action
from .steps import step

logger = logging.getLogger(__name__)

APP = "cartrita_search"
APPLICATION_NAME = "cartrita migrate"

#: A process killed at one of these leaves a database that the next run finishes.
STEPS = ("lock", "check", "backup", "apply")

DEFAULT_LOCK_TIMEOUT = 2.0
DEFAULT_WAIT = 300.0

#: lock_not_available, deadlock_detected: the same migration may get its locks later.
_LATER = {"55P03", "40P01"}
_INSUFFICIENT_PRIVILEGE = "42501"
#: read_only_sql_transaction: a replica, or default_transaction_read_only.
_READ_ONLY = "25006"

#: How our own versions are named; whatever else is in schema_migrations is others'.
_OURS = re.compile(r"\d{4}_\w+")

#: In milliseconds, 24 days: PostgreSQL takes no more.
_LONGEST_LOCK_TIMEOUT = 2**31 - 1

#: Between two looks at who is in the way, in seconds.
_WATCH_SECONDS = 0.2

# As pg_dump does it: limits that a role has for its requests are not for long work. And
# a server whose migrator was killed should not go on building an index for nobody.
_SESSION = """
    SELECT set_config(s.name, v.value, false)
    FROM (VALUES ('statement_timeout', '0'), ('idle_in_transaction_session_timeout', '0'),
        ('idle_session_timeout', '0'), ('transaction_timeout', '0'),
        ('client_connection_check_interval', '1s')
    ) AS v (name, value)
    JOIN pg_settings AS s USING (name)
"""

_IDENTITY = """
    SELECT d.datname::text, d.oid, pg_postmaster_start_time()
    FROM pg_database AS d WHERE d.datname = current_database()
"""

_BLOCKERS = """
    SELECT b.pid, a.usename::text, a.application_name, a.client_addr::text, a.state,
        date_trunc('second', clock_timestamp() - a.xact_start)::text,
        (SELECT string_agg(DISTINCT w.relation::regclass::text, ', ') FROM pg_locks AS w
         WHERE w.pid = %(pid)s AND NOT w.granted AND w.relation IS NOT NULL)
    FROM unnest(pg_blocking_pids(%(pid)s)) AS b (pid)
    LEFT JOIN pg_stat_activity AS a USING (pid)
    ORDER BY a.xact_start
"""

Say = Callable[[str], object]


# --- The record of migrations ------------------------------------------------


@dataclass(frozen=True, slots=True)
class MigrationRecord:
    """A migration of this package: what the database says of it, beside what is on disk."""

    version: str
    applied_at: datetime | None
    description: str
    #: 'applied'; 'pending'; 'earlier' for a row of somebody else's, such as the earlier
    #: SQL runner; and what is wrong: 'drift' (its files are not those it was applied
    #: from), 'missing' (applied, without a row), 'unknown' (not in this release),
    #: 'half-done' (begun and not ended).
    state: str
    #: As recorded, and as computed from the files of this release.
    recorded_checksum: str | None
    present_checksum: str | None

    @property
    def is_wrong(self) -> bool:
        """Whether somebody should look at it."""
        return self.state in {"drift", "missing", "unknown", "half-done"}


def records(*, using: str = DEFAULT_DB_ALIAS) -> list[MigrationRecord]:
    """Every migration that the database or this release knows, those applied first.

    Changes nothing, and works on any PostgreSQL database, also an empty one. Raises
    `PrivilegeMissing` where the role may not read the record.
    """
    connection = connections[using]
    with _privileged("may not read the record of migrations"):
        loader = MigrationLoader(connection)
    on_disk = sorted(name for app, name in loader.disk_migrations if app == APP)
    applied = {name for app, name in loader.applied_migrations if app == APP}
    rows = _rows(connection, ours=bool(applied))
    found = []
    for version in [*rows, *sorted({*on_disk, *applied} - rows.keys())]:
        row = rows.get(version, {})
        present = migration_checksum(version) if version in on_disk else None
        if row and not _OURS.fullmatch(version):
            state = "earlier"
        elif version not in on_disk:
            state = "unknown"
        elif row:
            finished = version in applied and row["migration_type"] != UNFINISHED
            state = "applied" if row["checksum"] == present else "drift"
            state = state if finished else "half-done"
        else:
            state = "missing" if version in applied else "pending"
        found.append(
            MigrationRecord(
                version,
                row.get("applied_at"),
                row.get("description") or "",
                state,
                row.get("checksum"),
                present,
            )
        )
    return found


def _rows(connection: BaseDatabaseWrapper, *, ours: bool) -> dict[str, dict[str, Any]]:
    """What schema_migrations holds, by version, also where it is not ``ours`` yet."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT has_table_privilege(to_regclass('public.schema_migrations'), 'SELECT'),"
            " quote_ident(current_user)"
        )
        readable, role = cursor.fetchone()
        if not readable and (readable is None or not ours):
            return {}
        if not readable:
            raise PrivilegeMissing(
                f"Role {role} may not read schema_migrations.",
                f"Nothing was changed. Run as its owner: GRANT SELECT ON schema_migrations"
                f" TO {role};",
            )
        cursor.execute(
            """
            SELECT r.row ->> 'version',
                CASE jsonb_typeof(r.row -> 'applied_at')
                    WHEN 'string' THEN (r.row ->> 'applied_at')::timestamptz
                END,
                r.row ->> 'checksum', r.row ->> 'description', r.row ->> 'migration_type'
            FROM (SELECT to_jsonb(s) AS row FROM public.schema_migrations AS s) AS r
            WHERE r.row ->> 'version' IS NOT NULL
            ORDER BY 2, 1
            """
        )
        names = ("applied_at", "checksum", "description", "migration_type")
        return {version: dict(zip(names, rest, strict=True)) for version, *rest in cursor}


def repair_checksum(
    version: str, *, expect: str, reason: str = "", using: str = DEFAULT_DB_ALIAS
) -> MigrationRecord:
    """Record the present checksum for ``version``, where ``expect`` is recorded now.

    Exactly one row is rewritten, and operator_actions says so, both or neither. Returns
    the row as it is then. Raises `InvalidArgument` where there is no drift to repair, or
    another checksum is recorded than the caller has seen; `NotMigrated` without a record.
    """
    known = {record.version: record for record in records(using=using)}
    record = known.get(version)
    if record is None or record.recorded_checksum is None or record.present_checksum is None:
        raise InvalidArgument(
            f'schema_migrations has no row for a migration "{version}" of this release.',
            "Nothing was changed. manage.py verify_migrations lists the versions.",
        )
    if record.state != "drift":
        raise InvalidArgument(
            f"{version} is {record.state}: there is no drift to repair.", "Nothing was changed."
        )
    with (
        _privileged("may not rewrite the record of migrations"),
        transaction.atomic(using=using),
        connections[using].cursor() as cursor,
    ):
        if not _has_table(connections[using], "operator_actions"):
            raise NotMigrated(
                "The table operator_actions, which is to record this, is not there yet.",
                "Nothing was changed. FORCE_MIGRATION=true manage.py migrate brings it.",
            )
        cursor.execute(
            "UPDATE public.schema_migrations SET checksum = %s"
            " WHERE version = %s AND checksum = %s",
            [record.present_checksum, version, expect],
        )
        if cursor.rowcount != 1:
            raise InvalidArgument(
                f"{version} has another checksum recorded: {record.recorded_checksum}.",
                "Nothing was changed. Look at what differs, then --expect that one.",
            )
        record_action(
            "repair_checksum",
            version,
            reason=reason,
            details={"from": expect, "to": record.present_checksum},
            using=using,
        )
    return next(each for each in records(using=using) if each.version == version)


@contextmanager
def _privileged(lacks: str) -> Iterator[None]:
    """`PrivilegeMissing` for what this role is refused in the block."""
    try:
        yield
    except DatabaseError as error:
        if getattr(error.__cause__, "sqlstate", None) not in {_INSUFFICIENT_PRIVILEGE, _READ_ONLY}:
            raise
        raise PrivilegeMissing(
            f"This role {lacks}: {str(error).strip()}.",
            "Nothing was changed. Run this as the role that migrates.",
        ) from error


def _has_table(connection: BaseDatabaseWrapper, name: str) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [f"public.{name}"])
        return bool(cursor.fetchone() == (True,))


# --- Before anything is touched ------------------------------------------------


def unmet_requirement(
    connection: BaseDatabaseWrapper, plan: Sequence[tuple[Migration, bool]]
) -> Requirement | None:
    """What stands in the way of this plan of Django's, or None. Changes nothing."""
    forwards = [
        migration for migration, backwards in plan if migration.app_label == APP and not backwards
    ]
    if not forwards:
        return None
    # What is recorded is made already: it is only to be recorded by Django again (--fake).
    recorded = _rows(connection, ours=False)
    made = [
        operation.makes
        for migration in forwards
        if migration.name not in recorded
        for operation in migration.operations
        if isinstance(operation, RunSQLFile) and operation.makes
    ]
    return missing_requirement(connection) or obstacle(connection, made)


def _refuse_wrong_record(using: str, *, fake: bool) -> list[MigrationRecord]:
    """Return the drift that FORCE_MIGRATION lets pass; raise `MigrationDrift` for any other."""
    found = records(using=using)
    migrations = MigrationLoader(None).disk_migrations
    for record in found:
        # A migration that is one transaction is never half-done by itself.
        if record.state == "half-done" and migrations[APP, record.version].atomic and not fake:
            raise MigrationDrift(
                f"schema_migrations has {record.version} as applied, Django's own record has not.",
                "Nothing was changed. If its objects are there, run:"
                f" manage.py migrate --fake {APP} {record.version}",
            )
    drift = [record for record in found if record.state == "drift"]
    if drift and not search_settings().force_migration:
        raise MigrationDrift(
            "Applied migrations are not those of this release: "
            + "; ".join(
                f"{record.version} (recorded {record.recorded_checksum},"
                f" now {record.present_checksum})"
                for record in drift
            )
            + ".",
            "Nothing was changed. Install the release that applied them, or, once you know what"
            " differs: manage.py repair_migration_checksum VERSION --expect RECORDED, or"
            " FORCE_MIGRATION=true for this one run.",
        )
    for record in drift:
        logger.warning(
            "FORCE_MIGRATION: %s was applied from other files (recorded %s, now %s)",
            record.version,
            record.recorded_checksum,
            record.present_checksum,
        )
    return drift


# --- Locks -----------------------------------------------------------------------


@dataclass(frozen=True)
class Blocker:
    """A session that holds, or waits ahead for, a lock that a migration needs."""

    pid: int
    role: str | None
    application: str | None
    client: str | None
    state: str | None
    #: How long its transaction has been open, as PostgreSQL writes an interval.
    age: str | None
    #: The tables that the migration waits for.
    relations: str | None

    def __str__(self) -> str:
        if not self.pid:
            return f"a prepared transaction ({self.relations or 'see pg_prepared_xacts'})"
        return (
            f"pid {self.pid} (role {self.role or '?'}, {self.application or 'unnamed'}, from"
            f" {self.client or 'local'}, {self.state or 'state hidden'} for {self.age or '?'})"
            + (f" on {self.relations}" if self.relations else "")
        )


@dataclass
class _Guard:
    """What `guarded` knows while it migrates."""

    lock: psycopg.Connection
    using: str
    wait: float
    lock_timeout: float
    backup: Callable[[], object] | None
    say: Say
    #: Who was in the way when it was last looked.
    blockers: list[Blocker] = field(default_factory=list)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look meanwhile, on the connection of the lock, who blocks the one that migrates.

        That also keeps a port-forward from closing it for idleness.
        """
        connection = connections[self.using]
        connection.ensure_connection()
        pid = connection.connection.info.backend_pid
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(_WATCH_SECONDS):
                try:
                    rows = self.lock.execute(_BLOCKERS, {"pid": pid}).fetchall()
                except psycopg.Error:
                    return  # `still_ours` tells it
                found = [Blocker(*row) for row in rows]
                new = {each.pid for each in found} - {each.pid for each in self.blockers}
                if found:
                    self.blockers = found
                for each in found:
                    if each.pid in new:
                        # Django's line about the migration has no end yet.
                        self.say(f"\n    Waiting for {each}.")

        thread = threading.Thread(target=watch, name="migration blockers", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def still_ours(self) -> None:
        """Raise `DatabaseUnreachable` if the lock is lost: somebody else may be migrating."""
        try:
            self.lock.execute("SELECT 1")
        except psycopg.Error as error:
            raise DatabaseUnreachable(
                "The connection that held the migration lock was lost.",
                "What is applied stays, nothing is half-done. Run this again.",
            ) from error

    def patiently(self, migration: Migration, work: Callable[[], Any]) -> Any:
        """Do ``work``, again and again while somebody holds a lock that it needs."""
        ours = migration.app_label == APP
        # Of others' migrations without a transaction nobody knows whether they can be repeated.
        repeatable = migration.atomic or ours
        # Ours without one wait for snapshots and in queues that keep nobody waiting; to
        # begin a build anew every two seconds would never end.
        timeout = self.lock_timeout if migration.atomic or not ours else self.wait
        deadline = time.monotonic() + self.wait
        while True:
            self.still_ours()
            self.blockers = []
            try:
                with connections[self.using].cursor() as cursor:
                    cursor.execute(
                        "SELECT set_config('lock_timeout', %s, false)",
                        [f"{min(max(1, round(timeout * 1000)), _LONGEST_LOCK_TIMEOUT)}ms"],
                    )
                return work()
            except DatabaseError as error:
                if getattr(error.__cause__, "sqlstate", None) not in _LATER:
                    raise
                left = deadline - time.monotonic()
                if not repeatable or left <= 0:
                    who = ", ".join(map(str, self.blockers)) or "a session that has ended since"
                    raise LockHeld(
                        f"{migration} did not get its locks within {self.wait:g} s: {who}.",
                        "It is not applied; what was applied before it stays. Run this again"
                        " later, or end that session first.",
                    ) from error
            # Long enough for those who queued behind to get through.
            time.sleep(min(left, self.lock_timeout * random.uniform(0.5, 1.5)))  # noqa: S311


class _Executor(MigrationExecutor):
    """Django's, patient, and with a backup before it begins."""

    def __init__(self, guard: _Guard, connection: BaseDatabaseWrapper, *args: Any) -> None:
        super().__init__(connection, *args)
        self._guard = guard

    def migrate(
        self,
        targets: Any,
        plan: Any = None,
        state: ProjectState | None = None,
        fake: bool = False,
        fake_initial: bool = False,
    ) -> Any:
        if plan and not fake and self._guard.backup is not None:
            step("migrate", "backup")
            self._guard.backup()
        if plan:
            step("migrate", "apply")
        return super().migrate(targets, plan, state, fake, fake_initial)

    def apply_migration(
        self, state: Any, migration: Any, fake: bool = False, fake_initial: bool = False
    ) -> Any:
        apply = super().apply_migration
        # Each attempt from the state as it was: a migration that fails has changed it.
        return self._guard.patiently(
            migration, lambda: apply(state.clone(), migration, fake, fake_initial)
        )

    def unapply_migration(self, state: Any, migration: Any, fake: bool = False) -> Any:
        unapply = super().unapply_migration
        return self._guard.patiently(migration, lambda: unapply(state, migration, fake))


@contextmanager
def guarded(
    using: str,
    *,
    wait: float = DEFAULT_WAIT,
    lock_timeout: float = DEFAULT_LOCK_TIMEOUT,
    backup: Callable[[], object] | None = None,
    fake: bool = False,
    say: Say,
) -> Iterator[None]:
    """Let Django's ``migrate`` run in the block as the only migrator of this database.

    ``wait`` is the most seconds to wait for another migrator, and for the locks of each
    migration; ``lock_timeout`` the most seconds that others queue behind one attempt.
    ``backup`` is called before the first migration, if there is one. ``say`` is told,
    line by line, who is waited for and what was renamed.

    Raises `LockHeld`, `MigrationDrift`, `PrivilegeMissing`, `PoolerRefused`,
    `DatabaseUnreachable`. Whatever is raised, each migration is applied or is not.
    """
    with ExitStack() as stack:
        lock = stack.enter_context(direct_connection(APPLICATION_NAME, using=using))
        _refuse_another_database(lock, using)
        step("migrate", "lock")
        stack.enter_context(
            advisory_lock(
                lock,
                MIGRATION_LOCK,
                wait=wait,
                waiting=lambda holder: say(f"Waiting for another migrator: {holder}."),
            )
        )
        connection = stack.enter_context(_own_connection(using))
        with _one_line(), connection.cursor() as cursor:
            cursor.execute(_SESSION)
        step("migrate", "check")
        drift = _refuse_wrong_record(using, fake=fake)
        guard = _Guard(lock, using, wait, lock_timeout, backup, say)
        stack.enter_context(guard.watching())
        stack.enter_context(_executor(guard))
        with _one_line(), _told_what_is_renamed(connection, say):
            yield
        if drift and _has_table(connection, "operator_actions"):
            record_action(
                "force_migration",
                ", ".join(record.version for record in drift),
                reason="FORCE_MIGRATION",
                details={
                    record.version: {
                        "recorded": record.recorded_checksum,
                        "present": record.present_checksum,
                    }
                    for record in drift
                },
                using=using,
            )


def _refuse_another_database(lock: psycopg.Connection, using: str) -> None:
    """Make sure that MIGRATE_DATABASE_URL leads to the database that the application uses."""
    if not search_settings().direct_database_url:
        return
    with _one_line(), connections[using].cursor() as cursor:
        cursor.execute(_IDENTITY)
        application = cursor.fetchone()
    migrating = lock.execute(_IDENTITY).fetchone()
    if application != migrating:
        raise InvalidArgument(
            f"MIGRATE_DATABASE_URL leads to another database ({(migrating or '?')[0]}) than"
            f" DATABASE_URL ({application[0]}), or to another server.",
            "Nothing was changed. Both must name the same database of the same server.",
        )


@contextmanager
def _own_connection(using: str) -> Iterator[BaseDatabaseWrapper]:
    """Django's ``using`` is a new connection, of the server itself, within the block."""
    before = connections[using]
    connection = before.copy()
    settings = connection.settings_dict
    settings["OPTIONS"] = dict(settings["OPTIONS"])
    settings["OPTIONS"].pop("pool", None)
    if search_settings().direct_database_url:
        options = direct_parameters(using)
        settings.update(
            {
                key: str(options.pop(name, ""))
                for key, name in (
                    ("NAME", "dbname"),
                    ("USER", "user"),
                    ("PASSWORD", "password"),
                    ("HOST", "host"),
                    ("PORT", "port"),
                )
            },
            OPTIONS=options,
        )
    settings["OPTIONS"]["application_name"] = APPLICATION_NAME
    connections[using] = connection
    try:
        yield connection
    finally:
        connection.close()
        connections[using] = before


@contextmanager
def _executor(guard: _Guard) -> Iterator[None]:
    """Django's command takes its executor from its module, and has no other hook."""
    module = vars(django_migrate)
    before = module["MigrationExecutor"]
    module["MigrationExecutor"] = partial(_Executor, guard)
    try:
        yield
    finally:
        module["MigrationExecutor"] = before


@contextmanager
def _told_what_is_renamed(connection: BaseDatabaseWrapper, say: Say) -> Iterator[None]:
    """Say what was set aside, or put back, by what was committed within the block."""
    before = set(all_set_aside(connection))
    try:
        yield
    finally:
        if connection.is_usable():
            after = set(all_set_aside(connection))
            for each in sorted(after - before, key=_tables_first):
                say(f"Kept: {each}.")
            for each in sorted(before - after, key=_tables_first):
                say(f"Put back: {each.kind} {each.present} is {each.former} again.")


def _tables_first(each: SetAside) -> tuple[bool, bool, str]:
    return each.kind != "table", each.kind in {"index", "sequence"}, str(each)


@contextmanager
def _one_line() -> Iterator[None]:
    """Turn what an operator can mend into one line instead of a traceback."""
    try:
        yield
    except DatabaseError as error:
        sqlstate = getattr(error.__cause__, "sqlstate", None)
        message = str(error).strip().partition("\n")[0]
        rolled_back = "The migration at work was rolled back; what was applied before it stays."
        if sqlstate == _INSUFFICIENT_PRIVILEGE:
            raise PrivilegeMissing(
                f"The migrating role lacks a privilege: {message}.",
                f"{rolled_back} Migrate as the objects' owner, or GRANT that role to this one.",
            ) from error
        if sqlstate == _READ_ONLY:
            raise DatabaseUnreachable(
                f"The database takes no changes: {message}.",
                f"{rolled_back} Migrate the primary, as a role that is not read-only.",
            ) from error
        if isinstance(error.__cause__, psycopg.OperationalError):
            raise DatabaseUnreachable(
                f"The database did not go on: {message}.", f"{rolled_back} Run this again."
            ) from error
        raise
