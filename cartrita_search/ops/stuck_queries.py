"""Sessions that hold everybody up, idle transactions and roots of lock queues, and their end.

`survey` looks and changes nothing; `end` ends what the survey says to end, after a look
at the very moment at whether it is still the same transaction.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

import psycopg
from django.apps import apps
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections, transaction
from psycopg import sql
from psycopg.errors import InsufficientPrivilege, InvalidName
from psycopg.rows import class_row

from ..db import IMPORT_LOCK, MIGRATION_LOCK, REBUILD_LOCK
from ..errors import InvalidArgument, PrivilegeMissing
from ..terminal import one_line
from .actions import record_action

logger = logging.getLogger(__name__)

APPLICATION_NAME = "cartrita cleanup"

#: Characters of a query that are shown, logged and recorded.
QUERY_LENGTH = 100

#: Sessions of these are at work that must not be cut short, or would have to begin anew.
PROTECTED_APPLICATIONS = frozenset(
    {
        "pg_dump",
        "pg_dumpall",
        "pg_restore",
        "pg_basebackup",
        "cartrita backup",
        "cartrita restore",
        "cartrita migrate",
        "cartrita rebuild",
        "cartrita import",
        APPLICATION_NAME,
    }
)

_PROTECTED_LOCKS = {
    MIGRATION_LOCK: "holds the migration lock",
    REBUILD_LOCK: "holds the rebuild lock",
    IMPORT_LOCK: "holds the import lock",
}

#: Between two looks at whether a session has ended, in seconds.
_POLL_SECONDS = 0.05

Action = Literal["cancel", "terminate", "none"]
Outcome = Literal["cancelled", "terminated", "gone", "survived"]


@dataclass(frozen=True, slots=True)
class Limits:
    """From when on a session is stuck, and which are left alone whatever they do."""

    #: Idle in transaction for so long, whatever it has touched: any may hold back vacuum.
    idle_seconds: float = 300.0
    #: At the root of a lock queue in which somebody has waited for so long.
    blocking_seconds: float = 30.0
    #: Queues on these tables count; None: any queue.
    tables: tuple[str, ...] | None = ()
    #: Application names to leave alone, beside `PROTECTED_APPLICATIONS`.
    protect: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Session:
    """One session, or one prepared transaction (pid 0, with its ``gid``), as it was seen."""

    pid: int
    user: str | None
    application: str
    client: str | None
    database: str | None
    #: pg_stat_activity.backend_type, "prepared transaction" for one of these.
    kind: str
    superuser: bool
    state: str | None
    query: str
    backend_start: datetime
    xact_start: datetime | None
    state_change: datetime | None
    #: Seconds in the present state.
    age: float
    #: Whether it is of this very database.
    here: bool
    #: Whether our role may end it.
    may_signal: bool
    #: Pids, and gids of prepared transactions.
    blocked_by: tuple[int | str, ...]
    gid: str | None = None
    #: "AccessExclusiveLock on embeddings", and since how many seconds.
    waits_for: str | None = None
    wait_seconds: float = 0.0
    #: The table of the lock waited for, where it is a table's.
    wanted_table: int | None = None
    wanted_transaction: str | None = None
    #: "RowExclusiveLock on embeddings": locks on tables.
    holds: tuple[str, ...] = ()
    #: Every table (OID) that it has locked, or wants to.
    tables: frozenset[int] = frozenset()
    #: Which of the locks of one-at-a-time work it holds.
    protected_lock: str | None = None

    @property
    def id(self) -> int | str:
        """What `blocked_by` of others names it by."""
        return self.gid or self.pid

    @property
    def is_idle(self) -> bool:
        """Whether it sits in an open transaction and does nothing: a cancel would do nothing."""
        return (self.state or "").startswith("idle in transaction")

    def __str__(self) -> str:
        name = f"prepared transaction {one_line(self.gid)}" if self.gid else f"pid {self.pid}"
        return f"{name} ({self.user or self.kind}, {self.application or 'unnamed'})"


@dataclass(frozen=True, slots=True)
class Finding:
    """A session, whether it is stuck, and what is to be done to it and why."""

    session: Session
    stuck: bool
    action: Action
    reason: str
    #: What `end` came to; None before, and where there was nothing to do.
    outcome: Outcome | None = None

    @property
    def is_there(self) -> bool:
        """Whether it is stuck still."""
        return self.stuck and self.outcome in {None, "survived"}


@dataclass(frozen=True, slots=True)
class Survey:
    """What one look found."""

    database: str
    role: str
    #: The stuck, the queues on the tables asked for, and protected sessions long idle.
    findings: list[Finding]
    #: Sessions idle in transaction that are below the limit and in nobody's way.
    idle_below: int
    #: Sessions that do not tell what they do: track_activities is off for them.
    hidden: int

    @property
    def stuck(self) -> list[Finding]:
        """Those that are there and stuck; a protected one only if others wait for it."""
        return [finding for finding in self.findings if finding.is_there]

    @property
    def to_end(self) -> list[Finding]:
        """Those that `end` would end."""
        return [finding for finding in self.findings if finding.action != "none"]


_ACTIVITY = """
    SELECT a.pid, a.usename::text AS user, a.application_name AS application,
        host(a.client_addr) AS client, a.datname::text AS database, a.backend_type AS kind,
        coalesce(r.rolsuper, false) AS superuser, a.state, coalesce(a.query, '') AS query,
        a.backend_start, a.xact_start, a.state_change,
        coalesce(extract(epoch FROM clock_timestamp() - a.state_change), 0)::float8 AS age,
        a.datname IS NOT DISTINCT FROM current_database() AS here,
        coalesce(pg_has_role('pg_signal_backend', 'USAGE') OR pg_has_role(a.usesysid, 'USAGE'),
                 false) AS may_signal,
        CASE a.wait_event_type WHEN 'Lock' THEN pg_blocking_pids(a.pid) ELSE '{}' END
            AS blocked_by
    FROM pg_stat_activity AS a
    LEFT JOIN pg_roles AS r ON r.oid = a.usesysid
    WHERE a.pid <> pg_backend_pid() AND a.backend_start IS NOT NULL
"""

_PREPARED = """
    SELECT 0 AS pid, p.owner::text AS user, '' AS application, NULL AS client,
        p.database::text, 'prepared transaction' AS kind, false AS superuser,
        'prepared' AS state, '' AS query, p.prepared AS backend_start,
        p.prepared AS xact_start, p.prepared AS state_change,
        extract(epoch FROM clock_timestamp() - p.prepared)::float8 AS age,
        p.database = current_database() AS here, false AS may_signal,
        '{}'::integer[] AS blocked_by, p.gid
    FROM pg_prepared_xacts AS p
"""

#: A prepared transaction has no pid; the lock on its transaction id tells which its are.
_LOCKS = """
    WITH locks AS MATERIALIZED (SELECT * FROM pg_locks),
    prepared AS (
        SELECT p.gid, x.virtualtransaction
        FROM pg_prepared_xacts AS p
        INNER JOIN locks AS x
            ON x.pid IS NULL AND x.locktype = 'transactionid' AND x.transactionid = p.transaction
    )
    SELECT coalesce('gid ' || p.gid, 'pid ' || l.pid), l.granted, l.mode, l.locktype,
        c.oid::bigint, c.oid::regclass::text, l.transactionid::text,
        coalesce(extract(epoch FROM clock_timestamp() - l.waitstart), 0)::float8,
        CASE WHEN l.locktype = 'advisory' AND l.objsubid = 1 AND l.database = d.oid
            THEN (l.classid::bigint << 32) | l.objid::bigint END
    FROM locks AS l
    CROSS JOIN (SELECT oid FROM pg_database WHERE datname = current_database()) AS d
    LEFT JOIN pg_class AS c
        ON c.oid = l.relation AND l.database = d.oid AND c.relkind IN ('r', 'p', 'm')
    LEFT JOIN prepared AS p ON l.pid IS NULL AND l.virtualtransaction = p.virtualtransaction
    WHERE (l.locktype <> 'virtualxid' OR NOT l.granted)
        AND (l.pid IS NOT NULL OR p.gid IS NOT NULL)
    ORDER BY 1, 6, 3
"""

#: Partitions are locked as tables of their own.
_TABLES = """
    SELECT t.relid::oid::bigint FROM pg_partition_tree(to_regclass(%(name)s)) AS t
    UNION SELECT to_regclass(%(name)s)::oid::bigint WHERE to_regclass(%(name)s) IS NOT NULL
"""

#: Only the transaction that was looked at: its number may be another session's by now.
#: One that was idle and has done something since is not stuck any more.
_SIGNAL = """
    SELECT CASE WHEN %(terminate)s THEN pg_terminate_backend(a.pid)
                ELSE pg_cancel_backend(a.pid) END
    FROM pg_stat_activity AS a
    WHERE a.pid = %(pid)s AND a.backend_start = %(backend_start)s
        AND a.xact_start IS NOT DISTINCT FROM %(xact_start)s
        AND (%(idle_since)s::timestamptz IS NULL OR a.state_change = %(idle_since)s)
"""

#: A transaction that was cancelled has let go of its locks, though it may still be open.
_HOLDS_LOCKS = """
    SELECT EXISTS (
        SELECT FROM pg_stat_activity AS a
        WHERE a.pid = %(pid)s AND a.backend_start = %(backend_start)s
            AND a.xact_start IS NOT DISTINCT FROM %(xact_start)s
            AND EXISTS (SELECT FROM pg_locks AS l WHERE l.pid = a.pid AND l.granted)
    )
"""

_IS_CONNECTED = """
    SELECT EXISTS (
        SELECT FROM pg_stat_activity AS a
        WHERE a.pid = %(pid)s AND a.backend_start = %(backend_start)s
    )
"""


def search_tables() -> tuple[str, ...]:
    """The tables of this package."""
    models = apps.get_app_config("cartrita_search").get_models()
    return tuple(f"public.{model._meta.db_table}" for model in models)


def survey(
    connection: psycopg.Connection, limits: Limits, *, using: str = DEFAULT_DB_ALIAS
) -> Survey:
    """Look at every session of this database, and at whoever blocks one. Changes nothing.

    ``connection`` is a `direct_connection`. Raises `PrivilegeMissing` for a role that cannot
    see the sessions of others, and `InvalidArgument` for a table that is not there.
    """
    role, database = _require_sight(connection)
    tables = None if limits.tables is None else _table_oids(connection, limits.tables)
    sessions = _sessions(connection)
    ours = {connection.info.backend_pid} | _django_pids(using)
    findings, idle_below = _Judge(sessions, limits, tables, ours).findings()
    hidden = sum(s.here and s.state == "disabled" for s in sessions)
    return Survey(database, role, findings, idle_below, hidden)


def end(
    connection: psycopg.Connection,
    found: Survey,
    *,
    grace: float = 5.0,
    using: str = DEFAULT_DB_ALIAS,
) -> Survey:
    """End what the survey says to end, and say how that went.

    An active session is cancelled, and terminated if it still holds locks ``grace`` seconds
    later; one that is idle in its transaction is terminated. Whoever has meanwhile begun
    another transaction, or woken up, is left alone ("gone"). Each that was ended leaves a
    log line and a row of operator_actions.

    Raises `PrivilegeMissing`, before any is ended, if one of them is not ours to end.
    """
    if not all(finding.session.may_signal for finding in found.to_end):
        raise PrivilegeMissing(
            f'The role "{found.role}" may not end sessions of other roles.',
            f"Nothing was ended. Run as a superuser: {_grant('pg_signal_backend', found.role)}",
        )
    done = []
    for finding in found.findings:
        outcome = None
        if finding.action != "none":
            outcome = _end_one(connection, finding, grace)
            if outcome != "gone":
                _record(finding, outcome, using)
        done.append(replace(finding, outcome=outcome))
    return replace(found, findings=done)


def end_session(
    connection: psycopg.Connection, session: Session, action: Action, grace: float
) -> Outcome:
    """Cancel or terminate that very transaction, and wait until it is ended."""
    identity = {
        "pid": session.pid,
        "backend_start": session.backend_start,
        "xact_start": session.xact_start,
        "idle_since": session.state_change if session.is_idle else None,
    }

    def signal(*, terminate: bool) -> bool:
        parameters = identity | {"terminate": terminate}
        return connection.execute(_SIGNAL, parameters).fetchone() is not None

    def ended(statement: str) -> bool:
        deadline = time.monotonic() + grace
        while connection.execute(statement, identity).fetchone() == (True,):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    if action == "cancel":
        if not signal(terminate=False):
            return "gone"
        if ended(_HOLDS_LOCKS) or not signal(terminate=True):
            return "cancelled"
    elif not signal(terminate=True):
        return "gone"
    return "terminated" if ended(_IS_CONNECTED) else "survived"


def tree(findings: Sequence[Finding], *, dry_run: bool = True) -> str:
    """Who blocks whom, as indented text: whoever waits stands below whom it waits for."""
    by_id = {finding.session.id: finding for finding in findings}
    lines: list[str] = []
    shown: set[int | str] = set()

    def add(finding: Finding, depth: int) -> None:
        again = finding.session.id in shown
        shown.add(finding.session.id)
        lines.extend("    " * depth + line for line in _lines(finding, dry_run, again))
        if not again:
            for other in findings:
                if finding.session.id in other.session.blocked_by:
                    add(other, depth + 1)

    roots = [f for f in findings if not set(f.session.blocked_by) & set(by_id)]
    # A deadlock has no root; PostgreSQL ends it in a second.
    for finding in [*roots, *findings]:
        if finding.session.id not in shown:
            add(finding, 0)
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """``45s``, ``7m 12s``, ``3h 5m``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60}s"
    return f"{whole // 3600}h {whole % 3600 // 60}m"


def _lines(finding: Finding, dry_run: bool, again: bool) -> Iterator[str]:
    session = finding.session
    head = f"{session}: {session.state or session.kind} for {duration(session.age)}"
    if again:
        yield f"{head} (see above)"
        return
    yield f"{head}  {session.query}".rstrip()
    if session.waits_for:
        yield f"  waits for {session.waits_for} since {duration(session.wait_seconds)}"
    if session.holds:
        more = "" if len(session.holds) <= 4 else f" and {len(session.holds) - 4} more"
        yield f"  holds {', '.join(session.holds[:4])}{more}"
    done = finding.outcome
    if done:
        verb = {"gone": "left alone, it has gone on meanwhile", "survived": "STILL THERE"}
        yield f"  {verb.get(done, done)}: {finding.reason}"
    elif finding.action == "none":
        yield f"  left alone: {finding.reason}"
    else:
        would = "would " if dry_run else "to "
        yield f"  {would}{finding.action}: {finding.reason}"


@dataclass(slots=True)
class _Judge:
    """What is stuck among these sessions."""

    sessions: list[Session]
    limits: Limits
    tables: set[int] | None
    ours: set[int]
    by_id: dict[int | str, Session] = field(init=False)
    waiters: dict[int | str, list[Session]] = field(init=False)

    def __post_init__(self) -> None:
        self.by_id = {session.id: session for session in self.sessions}
        self.waiters = defaultdict(list)
        for session in self.sessions:
            for blocker in session.blocked_by:
                self.waiters[blocker].append(session)

    def findings(self) -> tuple[list[Finding], int]:
        """Those to be shown, and how many more are idle in transaction."""
        concerned = [s for s in self.sessions if s.blocked_by and self._concerns(s)]
        shown = {s.id for s in concerned}
        for session in concerned:
            shown |= {s.id for s in self._reachable(session, self._blockers)}
        found, idle_below = [], 0
        for session in self.sessions:
            finding = self._judge(session)
            old = self._is_old(session)
            if finding.stuck or old or session.id in shown:
                found.append(finding)
            elif session.is_idle and session.here:
                idle_below += 1
        return found, idle_below

    def _judge(self, session: Session) -> Finding:
        waits = [
            waiter.wait_seconds
            for waiter in self._reachable(session, self._waiters)
            if self._concerns(waiter)
        ]
        at_root = not session.blocked_by or self._heads_queue(session)
        blocks = bool(waits) and at_root and max(waits) >= self.limits.blocking_seconds
        old = self._is_old(session)
        reasons = []
        if old:
            reasons.append(
                f"{session.state} for {duration(session.age)}"
                f" (limit {duration(self.limits.idle_seconds)})"
            )
        if waits and at_root:
            others = "1 session waits" if len(waits) == 1 else f"{len(waits)} sessions wait"
            reasons.append(
                f"{others} for it, the longest for {duration(max(waits))}"
                f" (limit {duration(self.limits.blocking_seconds)})"
            )
        why = "; ".join(reasons)
        protection = self._protection(session)
        if session.gid:
            literal = sql.Literal(session.gid).as_string()
            remedy = f"whoever prepared it ends it: COMMIT PREPARED or ROLLBACK PREPARED {literal}"
            return Finding(session, blocks or old, "none", "; ".join([remedy, *reasons]))
        if protection:
            return Finding(session, blocks, "none", "; ".join([protection, *reasons]))
        if old or blocks:
            # A cancel does nothing to a session that does nothing.
            idle = session.is_idle or session.state == "idle"
            return Finding(session, True, "terminate" if idle else "cancel", why)
        if session.blocked_by and not (waits and at_root):
            why = "it waits itself"
        return Finding(session, False, "none", why or "it is in nobody's way")

    def _is_old(self, session: Session) -> bool:
        idle = session.is_idle or session.gid is not None
        return idle and session.here and session.age >= self.limits.idle_seconds

    def _concerns(self, session: Session) -> bool:
        return self.tables is None or bool(session.tables & self.tables)

    def _protection(self, session: Session) -> str | None:
        if session.kind not in {"client backend", "prepared transaction"}:
            return session.kind
        if session.pid in self.ours:
            return "this command's own"
        if session.protected_lock:
            return session.protected_lock
        if session.application in PROTECTED_APPLICATIONS:
            return f"{session.application} is at work"
        if session.application in self.limits.protect:
            return f"--protect {session.application}"
        if session.superuser:
            return "a superuser's"
        if not session.here:
            return f"of the database {session.database}"
        return None

    def _heads_queue(self, session: Session) -> bool:
        """Whether others wait only because this one waits, for what is never ended.

        A statement that waits for a strong lock on a table holds up all who come later,
        though who has the table would not: behind a backup it is this one to cancel.
        """
        if session.wanted_table is None or not any(
            waiter.wanted_table == session.wanted_table for waiter in self.waiters[session.id]
        ):
            return False
        roots = [s for s in self._reachable(session, self._blockers) if not s.blocked_by]
        return bool(roots) and all(root.gid or self._protection(root) for root in roots)

    def _blockers(self, session: Session) -> list[Session]:
        return [self.by_id[each] for each in session.blocked_by if each in self.by_id]

    def _waiters(self, session: Session) -> list[Session]:
        return self.waiters[session.id]

    @staticmethod
    def _reachable(start: Session, step: Callable[[Session], Iterable[Session]]) -> list[Session]:
        """All but ``start`` itself that come one after the other by ``step``."""
        found: dict[int | str, Session] = {start.id: start}
        todo = [start]
        while todo:
            for other in step(todo.pop()):
                if other.id not in found:
                    found[other.id] = other
                    todo.append(other)
        return [session for session in found.values() if session is not start]


def _require_sight(connection: psycopg.Connection) -> tuple[str, str]:
    """The role and the database, if the role sees every session."""
    role, database, sees = connection.execute(
        "SELECT current_user::text, current_database()::text, "
        "pg_has_role('pg_read_all_stats', 'USAGE')"
    ).fetchone() or ("", "", False)
    if not sees:
        raise PrivilegeMissing(
            f'The role "{role}" cannot see what sessions of other roles do, so whether any is'
            " stuck is not known.",
            f"Nothing was ended. Run as a superuser: {_grant('pg_read_all_stats', role)}",
        )
    return role, database


def _grant(privilege: str, role: str) -> str:
    names = sql.Identifier(privilege), sql.Identifier(role)
    return sql.SQL("GRANT {} TO {};").format(*names).as_string()


def _table_oids(connection: psycopg.Connection, names: tuple[str, ...]) -> set[int]:
    """These tables and their partitions; with no names those of this package that exist."""
    found: set[int] = set()
    for name in names or search_tables():
        try:
            rows = connection.execute(_TABLES, {"name": name}).fetchall()
        except InvalidName:
            rows = []
        if names and not rows:
            raise InvalidArgument(
                f'There is no table "{name}" in this database.', "Nothing was ended."
            )
        found.update(oid for (oid,) in rows)
    return found


def _django_pids(using: str) -> set[int]:
    """The session that Django itself has open here, if any."""
    raw = connections[using].connection
    return set() if raw is None or raw.closed else {raw.info.backend_pid}


def _sessions(connection: psycopg.Connection) -> list[Session]:
    """All there are, prepared transactions too, with what each has locked and waits for."""
    with connection.cursor(row_factory=class_row(Session)) as cursor:
        sessions = cursor.execute(_ACTIVITY).fetchall() + cursor.execute(_PREPARED).fetchall()
    locks: dict[str, list[tuple[object, ...]]] = defaultdict(list)
    transactions: dict[str, str] = {}
    for owner, *lock in connection.execute(_LOCKS).fetchall():
        locks[owner].append(tuple(lock))
        if lock[0] and lock[2] == "transactionid":
            transactions[owner] = str(lock[5])
    complete = [_with_locks(session, locks[_owner(session)]) for session in sessions]
    prepared = [session for session in complete if session.gid]
    return [_naming_prepared(session, prepared, transactions) for session in complete]


def _owner(session: Session) -> str:
    """As `_LOCKS` names who has a lock."""
    return f"gid {session.gid}" if session.gid else f"pid {session.pid}"


def _with_locks(session: Session, locks: list[tuple[object, ...]]) -> Session:
    """With its locks, and with as much of its query as may be seen."""
    waits_for, wait_seconds, wanted, transaction_id, protected = None, 0.0, None, None, None
    holds, tables = [], set()
    for granted, mode, kind, table, name, xid, seconds, key in locks:
        if isinstance(table, int):
            tables.add(table)
        if granted:
            if name:
                holds.append(f"{mode} on {name}")
            if isinstance(key, int):
                protected = _PROTECTED_LOCKS.get(key, protected)
        else:
            waits_for = f"{mode} on {name or (f'transaction {xid}' if xid else kind)}"
            wait_seconds = float(str(seconds))
            wanted = table if isinstance(table, int) and kind == "relation" else None
            transaction_id = str(xid) if xid else None
    return replace(
        session,
        query=_shorten(session.query),
        blocked_by=tuple(dict.fromkeys(session.blocked_by)),
        waits_for=waits_for,
        wait_seconds=wait_seconds,
        wanted_table=wanted,
        wanted_transaction=transaction_id,
        holds=tuple(dict.fromkeys(holds)),
        tables=frozenset(tables),
        protected_lock=protected,
    )


def _naming_prepared(
    session: Session, prepared: list[Session], transactions: dict[str, str]
) -> Session:
    """With the gids of prepared transactions in the place of their common pid, 0."""
    if 0 not in session.blocked_by:
        return session
    gids = [
        each.gid
        for each in prepared
        if each.gid
        and (
            transactions.get(_owner(each)) == session.wanted_transaction
            if session.wanted_transaction
            else session.wanted_table in each.tables
        )
    ]
    others = [pid for pid in session.blocked_by if pid != 0]
    return replace(session, blocked_by=(*others, *gids))


def _shorten(query: str) -> str:
    text = one_line(query)
    if "password" in text.lower():
        return f"{text.split(' ', 1)[0]} ... (not shown: it speaks of a password)"
    return text if len(text) <= QUERY_LENGTH else f"{text[:QUERY_LENGTH]}..."


def _end_one(connection: psycopg.Connection, finding: Finding, grace: float) -> Outcome:
    try:
        return end_session(connection, finding.session, finding.action, grace)
    except InsufficientPrivilege:  # its role has been made a superuser's meanwhile
        return "survived"


def _record(finding: Finding, outcome: Outcome, using: str) -> None:
    """A log line and a row. What was done is done, even if the row cannot be written."""
    session = finding.session
    logger.warning("%s: %s: %s. %s", outcome, session, finding.reason, session.query)
    try:
        with transaction.atomic(using=using), connections[using].cursor() as cursor:
            # Somebody may hold that table too.
            cursor.execute("SELECT set_config('lock_timeout', '2s', true)")
            record_action(
                "cancel" if outcome == "cancelled" else "terminate",
                f"pid {session.pid}",
                done=outcome != "survived",
                reason=finding.reason,
                details={
                    "query": session.query,
                    "user": session.user,
                    "application": session.application,
                    "client": session.client,
                    "state": session.state,
                    "backend_start": session.backend_start.isoformat(),
                    "xact_start": session.xact_start and session.xact_start.isoformat(),
                    "holds": list(session.holds),
                },
                using=using,
            )
    except DatabaseError:
        logger.exception("%s was %s, but operator_actions has no row of it", session, outcome)
