"""The record of searches: rows of search_performance_metrics, written off the request's path.

`record` puts a row into this process's buffer and returns; a thread writes what is
there, by COPY over a connection of its own, when a tenth of METRICS_BUFFER_ROWS has
come together, every METRICS_FLUSH_SECONDS, and when the process exits. It holds no
connection in between, and takes no part in any transaction of the caller's.

What may be lost: a process that is killed, or ends by ``os._exit``, loses what it
has not written, at most METRICS_BUFFER_ROWS rows and usually those of the last
METRICS_FLUSH_SECONDS. While the database cannot be reached rows are kept until the
buffer is full; what comes then is dropped, and counted by `dropped`. A connection
that breaks just as a write is confirmed may leave those rows twice.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import unicodedata
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from django.db import DataError, IntegrityError, ProgrammingError, connections, router
from django.utils.crypto import salted_hmac
from psycopg.types.json import Jsonb

from . import prometheus
from .conf import SearchSettings, search_settings
from .models import SearchPerformanceMetric

logger = logging.getLogger(__name__)

#: What an exiting process waits for its last write. A database that has gone silent
#: must not hold up a deployment.
EXIT_SECONDS = 5.0

#: What the rows themselves are to blame for, or a table that is not there: they would
#: be refused for ever.
_REFUSED = (DataError, IntegrityError, ProgrammingError, TypeError, ValueError)

_suspended: ContextVar[bool] = ContextVar("suspended", default=False)

_COPY = """
COPY public.search_performance_metrics (
    user_id, search_type, query_text, query_hash, result_count, execution_time_ms, cache_hit,
    created_at, metadata
) FROM STDIN
"""


@dataclass(frozen=True, slots=True)
class SearchMetric:
    """One search that has been answered."""

    search_type: Literal["vector", "keyword", "hybrid"]
    result_count: int
    #: From the call to the answer, embedding and re-ranking included.
    execution_time_ms: float
    user_id: int | None = None
    #: The embedding model. None: no vector was used, or the database's default model,
    #: which is named when the row is written (of a search by meaning).
    model: str | None = None
    #: Kept only if STORE_QUERY_TEXT says so; otherwise its hash alone.
    query_text: str | None = None
    cache_hit: bool = False
    #: Goes into the row's metadata, finite numbers and names. Searches give the parts of
    #: ``execution_time_ms`` here: embed_ms, vector_ms, keyword_ms, rerank_ms, where the
    #: part was done; and redis_failure, the error for which they went past Redis.
    details: Mapping[str, float | str | bool] = field(default_factory=dict)


def record(metric: SearchMetric) -> None:
    """Count this search for Prometheus, and unless RECORD_SEARCHES is off leave a row.

    Neither where it is `suspended`. Waits for nothing and raises nothing of the
    database's. The row's metadata holds ``details``, ``model`` and ``zero_hits``.
    """
    if _suspended.get():
        return
    prometheus.count_search(
        metric.search_type,
        metric.execution_time_ms / 1000,
        cache_hit=metric.cache_hit,
        zero_hits=metric.result_count == 0,
    )
    settings = search_settings()
    if settings.record_searches:
        _recorder.add(_row(metric, settings), settings)


@contextmanager
def suspended() -> Iterator[None]:
    """Record none of the searches of this block: those of an evaluation are nobody's."""
    token = _suspended.set(True)
    try:
        yield
    finally:
        _suspended.reset(token)


def flush() -> int:
    """Write now what has been recorded so far; returns the number of rows written.

    For commands and tests. A failure is logged, and leaves the rows to the next time.
    """
    return _recorder.flush()


def dropped() -> int:
    """How many searches of this process were not recorded: full buffer, refused rows."""
    return _recorder.dropped


def query_hash(text: str) -> str:
    """Hexadecimal HMAC-SHA256 of the text, keyed from SECRET_KEY.

    The same for texts that differ only in case, white space or Unicode form (NFKC).
    Keyed, because words that people search for are guessed and looked up easily.
    """
    normalised = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    # A lone surrogate has no UTF-8 form.
    value = normalised.encode("utf-8", "replace")
    return salted_hmac("cartrita_search.metrics", value, algorithm="sha256").hexdigest()


def _row(metric: SearchMetric, settings: SearchSettings) -> tuple[Any, ...]:
    """The columns of `_COPY`."""
    text = metric.query_text
    kept = None
    if text is not None and settings.store_query_text:
        # No PostgreSQL text can hold NUL and lone surrogates.
        kept = text.replace("\x00", " ").encode("utf-8", "replace").decode()
    metadata = {
        **metric.details,
        "model": metric.model,
        "zero_hits": metric.result_count == 0,
    }
    return (
        metric.user_id,
        metric.search_type,
        kept,
        None if text is None else query_hash(text),
        metric.result_count,
        metric.execution_time_ms,
        metric.cache_hit,
        datetime.now(UTC),
        Jsonb(metadata),
    )


class _Recorder:
    """The buffer of this process and the thread that empties it."""

    def __init__(self) -> None:
        self.dropped = 0
        self._rows: deque[tuple[Any, ...]] = deque()
        #: Guards the rows; held for moments only.
        self._changed = threading.Condition()
        #: Held while rows are written: only its holder takes rows out.
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._settings = SearchSettings()
        self._failing = False
        self._closed = False

    def add(self, row: tuple[Any, ...], settings: SearchSettings) -> None:
        with self._changed:
            self._settings = settings
            if self._closed or len(self._rows) >= settings.metrics_buffer_rows:
                self._drop(1)
                return
            self._rows.append(row)
            if self._thread is None:
                self._start()
            elif self._is_due():
                self._changed.notify_all()

    def flush(self) -> int:
        """Write what is buffered now; returns how many rows were."""
        with self._writing:
            with self._changed:
                rows = list(self._rows)
            if not rows:
                return 0
            try:
                _write(rows)
            except _REFUSED as error:
                self._failed(f"{len(rows)} were dropped", error)
                self._take_out(len(rows), dropped=len(rows))
                return 0
            except Exception as error:  # noqa: BLE001 - whatever it is, no search fails of it
                self._failed(f"{len(rows)} wait for the database", error)
                return 0
            self._take_out(len(rows))
            self._failing = False
            return len(rows)

    def close(self) -> None:
        """Write the rest, within `EXIT_SECONDS`, and take no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(EXIT_SECONDS)
        if self._rows:
            logger.warning("Searches not recorded before the exit: %d.", len(self._rows))

    def _start(self) -> None:
        # A daemon: nothing waits for it but `close`, and that not for ever.
        self._thread = threading.Thread(target=self._run, name="search-metrics", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads, or the interpreter is ending
            self._thread = None
            self._failed("no thread can be started", error)

    def _run(self) -> None:
        last = False
        while not last:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or self._is_due(), self._settings.metrics_flush_seconds
                )
                last = self._closed
            self.flush()

    def _is_due(self) -> bool:
        # After a failure only the clock calls for the next try.
        return not self._failing and len(self._rows) * 10 >= self._settings.metrics_buffer_rows

    def _take_out(self, count: int, *, dropped: int = 0) -> None:
        with self._changed:
            if dropped:
                self._drop(dropped)
            for _ in range(count):
                self._rows.popleft()

    def _drop(self, rows: int) -> None:
        self.dropped += rows
        prometheus.count_dropped(rows)

    def _failed(self, consequence: str, error: Exception) -> None:
        if not self._failing:  # once an outage
            # libpq's messages have several lines.
            cause = " ".join(str(error).split())
            logger.warning("Searches are not being recorded (%s): %s", consequence, cause)
        self._failing = True


def _write(rows: list[tuple[Any, ...]]) -> None:
    # Beside the connections that Django keeps for each thread, which may be within a
    # transaction; and closed at once, so that nobody waits for it to be gone.
    alias = router.db_for_write(SearchPerformanceMetric)
    with (
        closing(connections.create_connection(alias)) as connection,
        connection.wrap_database_errors,
        connection.cursor() as cursor,
    ):
        unnamed = [
            metadata.obj
            for _, search_type, *_, metadata in rows
            if search_type != "keyword" and metadata.obj["model"] is None
        ]
        if unnamed:
            cursor.execute("SELECT name FROM public.embedding_models WHERE is_default")
            (name,) = cursor.fetchone() or (None,)
            for metadata in unnamed:
                metadata["model"] = name
        with cursor.copy(_COPY) as copy:
            for row in rows:
                copy.write_row(row)


_recorder = _Recorder()


def _begin_afresh() -> None:
    """In a forked child: the parent writes its own rows, and its thread is not here."""
    global _recorder  # noqa: PLW0603
    _recorder = _Recorder()


if hasattr(os, "register_at_fork"):  # absent on Windows
    os.register_at_fork(after_in_child=_begin_afresh)


@atexit.register
def _close() -> None:
    _recorder.close()
