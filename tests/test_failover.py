"""The primary crashes and comes back during a load of searches and upserts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.db import InterfaceError, OperationalError, close_old_connections, connections

from cartrita_search.ingest import Document, upsert_documents
from cartrita_search.models import SearchDocument
from cartrita_search.retrieval import keyword_search

from .replica import Replica, replica_of
from .server_processes import kill, start

ALIAS = "failing"
THREADS = 2

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def primary(database: dict[str, Any]) -> Iterator[Replica]:
    """A server of this test's own: a copy of the run's, promoted; commits wait for the disk."""
    with replica_of(database) as server, pytest.MonkeyPatch.context() as patch:
        with server.connect() as pg:
            pg.execute("SELECT pg_promote()")
        config = connections["default"].settings_dict | {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": server.parameters["host"],
            "PORT": str(server.parameters["port"]),
            "CONN_MAX_AGE": 60,
            "CONN_HEALTH_CHECKS": True,
            "OPTIONS": {"connect_timeout": 2, "options": "-c synchronous_commit=on"},
            "TEST": connections["default"].settings_dict["TEST"] | {"MIRROR": "default"},
        }
        patch.setitem(connections.settings, ALIAS, config)
        yield server
        connections[ALIAS].close()
        del connections[ALIAS]


@dataclass
class Load:
    """One thread's requests, one after the other."""

    request: Callable[[int], None]
    #: Numbers of the requests that were answered, in order.
    answered: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    one_more: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def run(self, stop: threading.Event) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            # As Django does at the beginning and the end of each request.
            close_old_connections()
            try:
                self.request(number)
            except (OperationalError, InterfaceError):
                self.failed.append(number)
            else:
                self.answered.append(number)
                self.one_more.release()
            close_old_connections()
        connections.close_all()

    def goes_on(self, requests: int) -> None:
        """Return when that many more have been answered."""
        while self.one_more.acquire(blocking=False):
            pass
        for _ in range(requests):
            assert self.one_more.acquire(timeout=60), "requests are no longer answered"


@pytest.mark.django_db(transaction=True, databases="__all__")
@pytest.mark.usefixtures("clean_tables")
def test_clients_recover_and_no_committed_upsert_is_lost(primary: Replica) -> None:
    def upserting(thread: int) -> Callable[[int], None]:
        def store(number: int) -> None:
            document = Document(f"source{thread}", str(number), "Tea", f"Tea number {number}.")
            upsert_documents([document], using=ALIAS)

        return store

    def searching(number: int) -> None:
        assert keyword_search("tea", using=ALIAS)

    upsert_documents([Document("notes", "1", "Tea", "The first tea.")], using=ALIAS)
    writes = [Load(upserting(thread)) for thread in range(THREADS)]
    loads = [*writes, *(Load(searching) for _ in range(THREADS))]
    stop = threading.Event()
    with ThreadPoolExecutor(len(loads)) as threads:
        running = [threads.submit(load.run, stop) for load in loads]
        try:
            for load in loads:
                load.goes_on(20)
            kill(primary)
            start(primary)
            for load in loads:
                load.goes_on(20)
        finally:
            stop.set()
    connections[ALIAS].close()  # this thread's is from before the crash
    for done in running:
        done.result()
    assert any(load.failed for load in loads)  # it was a load, and the crash was felt
    for thread, load in enumerate(writes):
        stored = SearchDocument.objects.using(ALIAS).filter(source_table=f"source{thread}")
        kept = {int(key) for key in stored.values_list("source_id", flat=True)}
        assert kept >= set(load.answered)
        # Of a request that failed nobody was told that it was stored, and it may be.
        assert kept <= set(load.answered) | set(load.failed)
