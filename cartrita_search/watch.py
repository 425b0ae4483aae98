"""Asking the database how it stands, without ever waiting longer than one is willing to.

A server that is frozen, or a network that swallows packets, holds whoever asks for
minutes. So a `Watch` asks in a thread, over a connection of its own, and its callers
wait for the answer as long as they like.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

import psycopg
from django.db import connections

Answer = TypeVar("Answer")

#: Without these a connection is waited for as long as TCP tries, two minutes and more.
#: Seconds, of which libpq takes no fewer; and milliseconds.
_TIMEOUTS = {"connect_timeout": 2, "tcp_user_timeout": 5000}


class Watch(Generic[Answer]):
    """One question to one database, asked by one thread at a time.

    ``ask`` is given a connection, within a transaction whose statements the server ends
    after ``seconds`` each. With ``keep`` the connection stays open from one question to
    the next: that a server takes no further connection says nothing of those it has.
    """

    def __init__(
        self,
        ask: Callable[[psycopg.Connection], Answer],
        *,
        alias: Callable[[], str],
        seconds: float,
        keep: bool = False,
    ) -> None:
        self._ask = ask
        self._alias = alias
        self._seconds = seconds
        self._keep = keep
        self._begin_afresh()
        if hasattr(os, "register_at_fork"):  # absent on Windows
            # The parent's thread is not in a child, and its connection is the parent's.
            os.register_at_fork(after_in_child=self._begin_afresh)

    def _begin_afresh(self) -> None:
        self._lock = threading.Lock()
        self._asked: Future[Answer] | None = None
        self._connection: psycopg.Connection | None = None

    def answer(self, wait: float) -> Answer:
        """The answer to a question that is put now, or that somebody else waits for.

        Raises whatever ``ask`` raises, psycopg.Error where there is no connection, and
        TimeoutError after ``wait`` seconds: then the question stays open, and the next
        caller waits for the same answer.
        """
        with self._lock:
            if self._asked is None or self._asked.done():
                self._asked = Future()
                # A daemon: a server that is silent must not hold up the exit.
                threading.Thread(
                    target=self._run, args=[self._asked], name="watch", daemon=True
                ).start()
            asked = self._asked
        return asked.result(wait)

    def close(self) -> None:
        """Close the connection that is kept."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _run(self, asked: Future[Answer]) -> None:
        try:
            answer = self._ask_now()
        except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
            self.close()
            asked.set_exception(error)
        else:
            if not self._keep:
                self.close()
            asked.set_result(answer)

    def _ask_now(self) -> Answer:
        if self._connection is None:
            parameters = connections[self._alias()].get_connection_params()
            self._connection = psycopg.connect(**_TIMEOUTS | parameters, autocommit=True)
        with self._connection.transaction():
            # Of the transaction, so that a pooler hands it on to nobody.
            self._connection.execute(
                "SELECT set_config('statement_timeout', %s, true)",
                [str(int(self._seconds * 1000))],
            )
            return self._ask(self._connection)
