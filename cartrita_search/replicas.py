"""Searches on read replicas: which one is fit, and who must not be sent to it.

`choose` names a database for one search. A replica is passed over while it does not
answer, while it is more than REPLICA_MAX_LAG_SECONDS behind, and where it has not yet
replayed what the searcher wrote; a search that finds none goes to the primary. So does
one within a transaction, which may have written what it searches for.

How the servers stand is asked beside the searches, of each at most once a second, over a
connection that is kept; a process that has been idle waits for the answer `PATIENCE`
seconds at most. A replica comes back by itself with the first good answer.

**Lag** is how long ago the primary stood where the replica is now. It is known from the
primary's earlier answers, so a primary that writes nothing makes no replica look late,
and one that is gone leaves its replicas as fresh as they were.

**Read your writes.** `wrote` notes the position of the primary's write-ahead log, in the
present context and, by the middleware `read_your_writes`, in a cookie of the person's. The
functions of `ingest` call it, and the middleware does after every request that may have
written: any but GET, HEAD, OPTIONS and TRACE. Other code that writes and then searches,
outside of such a request, calls it itself.
"""

from __future__ import annotations

import logging
import math
import os
import random
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple, TypeVar, cast

import psycopg
from asgiref.sync import iscoroutinefunction, sync_to_async
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, DatabaseError, InterfaceError, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import sync_and_async_middleware

from .conf import search_settings
from .errors import NotMigrated, UnknownModel
from .watch import Watch

logger = logging.getLogger(__name__)

PRIMARY = DEFAULT_DB_ALIAS

#: Between two questions to one server.
LOOK_SECONDS = 1.0
#: What an answer is good for: until the next, which takes some time itself.
FRESH_SECONDS = 2.5
#: What a search waits for an answer where the last one is older than that.
PATIENCE = 0.2
#: How much longer than the largest lag a write is remembered: by then every replica that
#: is not passed over has it.
MARGIN_SECONDS = 10.0

COOKIE = "search_position"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
#: Stands for a position that could not be asked for: no replica has come so far.
_UNKNOWN = 1 << 64

Answer = TypeVar("Answer")

#: Positions as bytes of the log, which compare as numbers do.
_PRIMARY_STANDS = """
    SELECT true, pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint, NULL::float8
"""
_REPLICA_STANDS = """
    SELECT pg_is_in_recovery(), pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint,
        extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8
"""
# What was committed asynchronously is inserted, but may not be written yet.
_WRITTEN = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"


def choose() -> str:
    """The alias of the database for a search that begins now."""
    names = search_settings().replicas
    if not names or connections[PRIMARY].in_atomic_block:
        return PRIMARY
    fleet = _fleet_of(tuple(names))
    fit = fleet.fit(_must_have())
    return random.choice(fit) if fit else PRIMARY  # noqa: S311 - no secret


def read(alias: str, search: Callable[[str], Answer]) -> Answer:
    """What ``search(alias)`` returns; where that is a replica and fails, the primary's answer.

    A replica may be gone in the middle of a search, end it because it stands in the way
    of replay, or lack what was made a moment ago. A statement that was ended because it
    took too long is not begun anew.
    """
    if alias not in search_settings().replicas:
        return search(alias)
    try:
        return search(alias)
    except (DatabaseError, InterfaceError) as error:
        cause = error.__cause__
        if isinstance(cause, psycopg.errors.QueryCanceled):
            raise
        if isinstance(cause, (psycopg.OperationalError, psycopg.InterfaceError)):
            # Or this thread would go on with a connection that is broken.
            connections[alias].close()
            if not isinstance(cause, psycopg.errors.SerializationFailure):
                _fleet_of(tuple(search_settings().replicas)).failed(alias, cause)
    except (NotMigrated, UnknownModel):
        pass
    return search(PRIMARY)


# --- How the servers stand --------------------------------------------------


class _Seen(NamedTuple):
    """How a server stood."""

    #: When it was asked (monotonic): it stood there then, or later.
    at: float
    position: int
    #: Seconds since the last transaction that the replica has replayed was committed.
    commit_age: float | None


class _Server:
    """One server, and what it last said."""

    def __init__(self, alias: str, question: str) -> None:
        self.alias = alias
        self.seen: _Seen | None = None
        self.failed_at = -inf
        self._question = question.encode()
        # What comes later is good for nothing.
        self._watch = Watch(self._ask, alias=lambda: alias, seconds=FRESH_SECONDS, keep=True)
        self._lock = threading.Lock()
        self._asked: Future[None] | None = None
        self._asked_at = -inf
        #: Whether an answer may be waited for: the last one came, and in time.
        self._answers = True

    def look(self) -> None:
        """Ask, unless that was done within the last second or is being done."""
        with self._lock:
            now = time.monotonic()
            if self._asked is not None:
                if not self._asked.done() or now - self._asked_at < LOOK_SECONDS:
                    return
                self._answers = self._asked.exception() is None
            self._asked_at = now
            self._asked = self._watch.asked()

    def wait(self, deadline: float) -> None:
        """Wait for the answer, where the last is too old and this one is likely to come."""
        if self._asked is None or not self._answers or self._is_fresh():
            return
        try:
            self._asked.exception(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            self._answers = False

    def problem(self) -> str | None:
        """What is wrong with it, lag apart."""
        asked = self._asked
        if asked is not None and asked.done() and (error := asked.exception()) is not None:
            return " ".join(str(error).split()) or type(error).__name__
        if not self._is_fresh():
            return "it does not answer"
        if self.seen is not None and self.seen.at <= self.failed_at:
            return "a search failed on it"
        return None

    def _is_fresh(self) -> bool:
        return self.seen is not None and time.monotonic() - self.seen.at <= FRESH_SECONDS

    def _ask(self, connection: psycopg.Connection) -> None:
        row = connection.execute(self._question).fetchone()
        is_what_it_should_be, position, commit_age = row or (False, 0, None)
        if not is_what_it_should_be:
            raise _NoReplica("it is no replica (any more)")
        self.note(_Seen(self._asked_at, position, commit_age))

    def note(self, seen: _Seen) -> None:
        """Keep what it said."""
        self.seen = seen


class _NoReplica(Exception):
    """It takes writes of its own, so what it holds may be another history."""


class _Primary(_Server):
    """The primary, with where it stood when."""

    def __init__(self) -> None:
        super().__init__(PRIMARY, _PRIMARY_STANDS)
        #: Oldest first; ten minutes and more.
        self.stood: deque[_Seen] = deque(maxlen=600)

    def note(self, seen: _Seen) -> None:
        super().note(seen)
        self.stood.append(seen)


class _Fleet:
    """The primary and its replicas, as this process sees them."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.primary = _Primary()
        self.replicas = [_Server(name, _REPLICA_STANDS) for name in names]
        self._told: dict[str, str | None] = {}

    def fit(self, position: int) -> list[str]:
        """The replicas that are fit for a search, and have come to that position."""
        servers = [self.primary, *self.replicas]
        for server in servers:
            server.look()
        deadline = time.monotonic() + PATIENCE
        for server in servers:
            server.wait(deadline)
        found = []
        for replica in self.replicas:
            problem = replica.problem() or self._lateness(replica)
            self._tell(replica.alias, problem)
            if problem is None and replica.seen is not None and replica.seen.position >= position:
                found.append(replica.alias)
        return found

    def failed(self, alias: str, error: Exception) -> None:
        """Pass that replica over until it has answered anew."""
        for replica in self.replicas:
            if replica.alias == alias:
                replica.failed_at = time.monotonic()
        self._tell(alias, " ".join(str(error).split()))

    def _lateness(self, replica: _Server) -> str | None:
        most = search_settings().replica_max_lag_seconds
        lag = self._lag(replica)
        if lag <= most:
            return None
        behind = "far" if lag == inf else f"{lag:.1f} s"
        return f"it is {behind} behind, and {most:g} s is the most"

    def _lag(self, replica: _Server) -> float:
        """Seconds at most; infinite where nothing tells."""
        seen, now = replica.seen, time.monotonic()
        if seen is None:
            return inf
        stood = tuple(self.primary.stood)  # of one moment
        if not stood:
            # Nothing tells: better an old answer than none, if the primary has none.
            return inf if self.primary.problem() is None else 0.0
        if seen.position >= stood[-1].position:
            return 0.0
        known = next((now - s.at for s in reversed(stood) if s.position <= seen.position), inf)
        if seen.commit_age is None:
            return known
        # By the clocks of both servers; for a process that has not asked for a while.
        return min(known, seen.commit_age + now - seen.at)

    def _tell(self, alias: str, problem: str | None) -> None:
        """Log what has changed."""
        before = self._told.get(alias)
        self._told[alias] = problem
        if problem is not None and before is None:
            logger.warning('Searches pass over the replica "%s": %s', alias, problem)
        elif problem is None and before is not None:
            logger.info('Searches go to the replica "%s" again.', alias)


_fleet: _Fleet | None = None
_making = threading.Lock()


def _fleet_of(names: tuple[str, ...]) -> _Fleet:
    global _fleet  # noqa: PLW0603
    with _making:
        if _fleet is None or _fleet.names != names:
            _fleet = _Fleet(names)
        return _fleet


def _begin_afresh() -> None:
    """In a forked child: what the parent has asked is answered in the parent."""
    global _fleet, _making
    _fleet, _making = None, threading.Lock()


if hasattr(os, "register_at_fork"):  # absent on Windows
    os.register_at_fork(after_in_child=_begin_afresh)


# --- Read your writes -------------------------------------------------------


@dataclass(frozen=True)
class _Write:
    position: int
    #: When it was heard of (monotonic).
    at: float


_last_write: ContextVar[_Write | None] = ContextVar("last_write", default=None)


def wrote(using: str = PRIMARY) -> None:
    """Let searches of this context see what it has written so far, committed or about to be."""
    if using != PRIMARY or not search_settings().replicas:
        return
    # What was written is written, even if it cannot be asked where that stands: its writer
    # then searches on the primary for a while.
    try:
        transaction.on_commit(_remember, using=PRIMARY)
    except (DatabaseError, InterfaceError):
        _last_write.set(_Write(_UNKNOWN, time.monotonic()))


def _remember() -> None:
    position = _UNKNOWN
    with suppress(DatabaseError, InterfaceError), connections[PRIMARY].cursor() as cursor:
        cursor.execute(_WRITTEN)
        (position,) = cursor.fetchone()
    _last_write.set(_Write(position, time.monotonic()))


def _must_have() -> int:
    """The position that a replica must have come to for this context's searches."""
    write = _last_write.get()
    if write is None or time.monotonic() - write.at > _remembered_seconds():
        return 0
    return write.position


def _remembered_seconds() -> int:
    return math.ceil(search_settings().replica_max_lag_seconds + MARGIN_SECONDS)


@sync_and_async_middleware
def read_your_writes(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Middleware: who has just written finds it, wherever the next request's search runs."""
    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponse:
            begun = _begin(request)
            response = await cast("Awaitable[HttpResponse]", get_response(request))
            if request.method not in _SAFE:
                await sync_to_async(wrote)()
            return _end(response, begun)

        return middleware

    def sync_middleware(request: HttpRequest) -> HttpResponse:
        begun = _begin(request)
        response = cast("HttpResponse", get_response(request))
        if request.method not in _SAFE:
            wrote()
        return _end(response, begun)

    return sync_middleware


def _begin(request: HttpRequest) -> _Write | None:
    begun = None
    if COOKIE in request.COOKIES:
        # The signature keeps its age; what is too old or not ours counts as none.
        value = request.get_signed_cookie(COOKIE, default="", max_age=_remembered_seconds())
        if value:
            begun = _Write(int(value), time.monotonic())
    _last_write.set(begun)
    return begun


def _end(response: HttpResponse, begun: _Write | None) -> HttpResponse:
    write = _last_write.get()
    if write is not None and write is not begun:
        response.set_signed_cookie(
            COOKIE,
            str(write.position),
            max_age=_remembered_seconds(),
            secure=settings.SESSION_COOKIE_SECURE,
            httponly=True,
            samesite="Lax",
        )
    return response
