"""Long statements: done in a thread, while this one looks how far the server is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import psycopg

#: Between two looks at what the server is doing, in seconds.
POLL_SECONDS = 0.25

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Phase:
    """What the server is doing at this moment."""

    name: str
    done: int = 0
    #: None: how much there is to do is not known.
    total: int | None = None
    #: 'tuples', 'blocks' or 'transactions'.
    unit: str = ""


Progress = Callable[[Phase], object]


def watched(
    connection: psycopg.Connection,
    work: Callable[[], Result],
    *,
    stop: threading.Event,
    look: Callable[[], object],
) -> Result:
    """Do ``work`` on ``connection`` in a thread, and ``look`` again and again until it is done.

    ``stop``, once set, cancels its statement, and so does an exception here: it then
    raises `psycopg.errors.QueryCanceled`, or that exception.
    """

    def cancel() -> None:
        with suppress(psycopg.Error):
            connection.cancel_safe(timeout=5)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            while not wait([future], timeout=POLL_SECONDS).done:
                if stop.is_set():
                    cancel()
                look()
        finally:
            if not future.done():
                cancel()
        return future.result()
