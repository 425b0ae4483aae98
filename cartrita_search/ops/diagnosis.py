"""How the doctor works: rules, asked one by one, and what they find.

A function decorated with `rule` looks for one thing and yields (evidence, remedy) pairs;
nothing found means it is well. Each is asked in a transaction of its own that changes
nothing and gives up after a while. The rules themselves are in `doctor`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from django.db import DEFAULT_DB_ALIAS, DatabaseError, OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.errors import InsufficientPrivilege, LockNotAvailable, QueryCanceled

from ..errors import DatabaseUnreachable, NotMigrated, SearchError, from_database
from ..terminal import one_line

Severity = Literal["error", "warning"]
#: What is wrong, in one sentence, and the command that mends it.
Evidence = tuple[str, str]

#: Lines that one rule may take of the screen; what is more is counted.
LINES = 3


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From where on something is a finding."""

    #: The keyword statistics' count of documents differs by so much of the corpus.
    keyword_drift: float = 0.1
    #: From so many vectors on the planner should prefer an index that it can use; below,
    #: comparing all may be the cheaper way.
    planner_rows: int = 10_000
    #: Pages of a table before statistics matter to the planner. Of a smaller one that is
    #: new, autovacuum's turn may simply not have come yet.
    analyze_pages: int = 1024
    #: Dead tuples, as a part of the live ones (autovacuum comes at 0.2), and at least: a
    #: small table that is written all the time always has some.
    dead_share: float = 0.3
    dead_tuples: int = 10_000
    #: A table's size beside what its rows take, and the bytes that are wasted at least.
    #: The first refresh of the keyword statistics writes each document once more, so that
    #: twice is usual (measured: 2.2), and filled again in time.
    bloat_factor: float = 3.0
    bloat_bytes: int = 50 << 20
    #: search_performance_metrics and cache_invalidation_log, each.
    history_bytes: int = 5 << 30
    #: How far back it is told that searches went past Redis.
    redis_minutes: int = 15
    lag_bytes: int = 64 << 20
    lag_seconds: float = 30.0
    transaction_seconds: float = 3600.0
    #: Of shared_buffers, what the indexes that every search reads may take.
    hot_share: float = 1.0
    #: Of the connections that ordinary roles may have.
    connections_share: float = 0.8
    #: How long one rule may ask the database, in seconds.
    patience: float = 10.0


@dataclass(frozen=True, slots=True)
class Patient:
    """The database that is looked at."""

    using: str
    thresholds: Thresholds

    @property
    def connection(self) -> BaseDatabaseWrapper:
        return connections[self.using]

    def rows(self, statement: str, parameters: object = None) -> list[tuple[Any, ...]]:
        """The rows of a statement."""
        with self.connection.cursor() as cursor:
            cursor.execute(statement, parameters)  # type: ignore[arg-type]
            found: list[tuple[Any, ...]] = cursor.fetchall()
            return found


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that may be wrong."""

    id: str
    severity: Severity
    title: str
    look: Callable[[Patient], Iterable[Evidence]]
    #: Its id as a system check too, where it is cheap enough for one.
    check: str | None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    id: str
    severity: Severity
    title: str
    evidence: str
    #: The command or statement that mends it.
    remedy: str


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found, and what could not be looked at."""

    database: str
    postgresql: str
    pgvector: str | None
    findings: list[Finding]
    #: By id, why that was not looked at.
    skipped: dict[str, str]
    looked_at: int
    seconds: float
    #: By action: the last one that was done, from operator_actions.
    last_actions: dict[str, datetime] = field(default_factory=dict)

    def worst(self, severity: str) -> list[Finding]:
        """The findings that are at least so severe."""
        return [f for f in self.findings if severity == "warning" or f.severity == "error"]


#: Every rule by its id, in the order of the screen.
RULES: dict[str, Rule] = {}


def rule(
    key: str, severity: Severity, title: str, *, check: str | None = None
) -> Callable[[Callable[[Patient], Iterable[Evidence]]], None]:
    """Make a function the rule of that id. Ids are never used again for something else."""

    def register(look: Callable[[Patient], Iterable[Evidence]]) -> None:
        RULES[key] = Rule(key, severity, title, look, check)

    return register


def examine(
    *,
    using: str = DEFAULT_DB_ALIAS,
    only: Collection[str] | None = None,
    thresholds: Thresholds | None = None,
) -> Examination:
    """Look for everything, or for the rules of these ids. Changes nothing.

    A rule that cannot look (no right to, not migrated, too slow) is in ``skipped`` with
    the reason. Raises `DatabaseUnreachable` where there is no database to look at.
    """
    patient = Patient(using, thresholds or Thresholds())
    started = time.monotonic()
    try:
        ((name, version, pgvector),) = patient.rows(
            "SELECT current_database(), current_setting('server_version'),"
            " (SELECT e.extversion FROM pg_extension AS e WHERE e.extname = %s)",
            ["vector"],
        )
    except OperationalError as error:
        raise DatabaseUnreachable(
            f"No connection to the database: {one_line(str(error))}.",
            "Check DATABASE_URL, and that the server runs.",
        ) from error
    findings: list[Finding] = []
    skipped: dict[str, str] = {}
    rules = [each for key, each in RULES.items() if only is None or key in only]
    for each in rules:
        try:
            found = _look(each, patient)
        except NotSeen as reason:
            skipped[each.id] = str(reason)
        else:
            findings += found
    findings.sort(key=lambda finding: finding.severity)  # errors first; the order stays
    return Examination(
        name,
        version,
        pgvector,
        findings,
        skipped,
        len(rules),
        round(time.monotonic() - started, 2),
        _last_actions(patient),
    )


class NotSeen(Exception):
    """Raised by a rule that cannot look, with the reason."""


def _look(each: Rule, patient: Patient) -> list[Finding]:
    try:
        with _patience(patient):
            found = list(each.look(patient))
    except DatabaseError as error:
        cause = error.__cause__
        if isinstance(cause, QueryCanceled):
            reason = f"it took longer than {patient.thresholds.patience:g} s"
        elif isinstance(cause, LockNotAvailable):
            reason = "a table is locked: manage.py cleanup_stuck_queries shows by whom"
        elif isinstance(cause, InsufficientPrivilege):
            reason = f"this role may not ({one_line(str(error))})"
        elif isinstance(from_database(error), NotMigrated):
            reason = "not all migrations are applied"
        else:
            reason = one_line(str(error))
        raise NotSeen(reason) from error
    except SearchError as error:
        raise NotSeen(error.message) from error
    if len(found) > LINES:
        more = f"and {len(found) - LINES + 1} more like these"
        found = [*found[: LINES - 1], (more, found[LINES - 1][1])]
    # There may be names of models and sessions in it, which anybody chose.
    return [
        Finding(each.id, each.severity, each.title, one_line(evidence), one_line(remedy))
        for evidence, remedy in found
    ]


@contextmanager
def _patience(patient: Patient) -> Iterator[None]:
    """A transaction of one rule; how long it may ask ends with it."""
    with transaction.atomic(using=patient.using):
        milliseconds = str(int(patient.thresholds.patience * 1000))
        patient.rows(
            "SELECT set_config('statement_timeout', %s, true),"
            " set_config('lock_timeout', '1s', true)",
            [milliseconds],
        )
        yield


def _last_actions(patient: Patient) -> dict[str, datetime]:
    try:
        with transaction.atomic(using=patient.using):
            return dict(
                patient.rows(
                    "SELECT a.action, max(a.occurred_at) FROM operator_actions AS a"
                    " WHERE a.outcome = %s AND a.action IN ('backup', 'rebuild', 'restore')"
                    " GROUP BY 1 ORDER BY 1",
                    ["done"],
                )
            )
    except DatabaseError:  # not migrated, which is a finding of its own
        return {}
