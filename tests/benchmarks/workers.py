"""Embedding shared by processes: how much faster are 2 and 8 than 1, the provider's pace given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import psycopg
from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper

from cartrita_search.ingest import Document, upsert_documents
from tests.embedding_server import KEY, Answer, embedding_server

from .database import raw_connection, truncate
from .report import Measurement, show

#: What a provider takes for a batch; one process has one request under way.
LATENCY_SECONDS = 1.0
BATCH = 16
BATCHES = 48
WORKERS = (1, 2, 8)
MODEL = "paced"


class Pace(threading.Event):
    """What each request waits for: the first of every worker, and then its own second.

    Starting Python is no part of the work, so the clock starts when all have asked.
    """

    def __init__(self, workers: int) -> None:
        super().__init__()
        self.started_at = 0.0
        self._first = threading.Semaphore(workers)
        self._all_there = threading.Barrier(workers, self._start)

    def _start(self) -> None:
        self.started_at = time.perf_counter()

    def wait(self, timeout: float | None = None) -> bool:
        if self._first.acquire(blocking=False):
            self._all_there.wait()
        super().wait(LATENCY_SECONDS)  # nobody sets it: this is the provider's latency
        return True


def run(connection: BaseDatabaseWrapper) -> bool:
    """Embed the same documents by so many processes each time."""
    with raw_connection(connection) as pg:
        seconds = {workers: _embedded(pg, connection, workers) for workers in WORKERS}
    return show(
        [
            Measurement("documents", BATCH * BATCHES),
            *(Measurement(f"seconds by {w} process(es)", taken) for w, taken in seconds.items()),
            Measurement("2 processes against 1", seconds[1] / seconds[2], at_least=1.9),
            Measurement("8 processes against 1", seconds[1] / seconds[8], at_least=7.0),
        ]
    )


def _embedded(pg: psycopg.Connection, connection: BaseDatabaseWrapper, workers: int) -> float:
    truncate(pg)
    pg.execute("DELETE FROM embedding_models")
    upsert_documents(
        Document("notes", str(n), f"Note {n}", f"The text of note {n}.")
        for n in range(BATCH * BATCHES)
    )
    with embedding_server() as server:
        pace = Pace(workers)
        server.default = Answer(release=pace)
        processes = [
            subprocess.Popen(
                [sys.executable, "manage.py", "sync_embeddings", f"--batch-size={BATCH}"],
                cwd=settings.BASE_DIR,
                env=_environment(connection.settings_dict, server.url),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for _ in range(workers)
        ]
        wanted = (BATCH * BATCHES,)
        while pg.execute("SELECT count(*) FROM embeddings").fetchone() != wanted:
            if all(process.poll() is not None for process in processes):
                raise RuntimeError("the workers ended before their work")
            with suppress(subprocess.TimeoutExpired):
                processes[0].wait(0.01)
        taken = time.perf_counter() - pace.started_at
        for process in processes:
            process.wait()
    return taken


def _environment(params: dict[str, Any], url: str) -> dict[str, str]:
    embedder = {"model": "m", "name": MODEL, "dimensions": 8, "base_url": url, "api_key": KEY}
    return {
        "PATH": os.environ["PATH"],
        "ENV_FILE": os.devnull,
        "DEBUG": "true",
        "DATABASE_URL": "postgres://{USER}@:{PORT}/{NAME}?host={HOST}".format(**params),
        "EMBEDDER": "cartrita_search.embedders.OpenAIEmbedder",
        "EMBEDDER_OPTIONS": json.dumps(embedder),
    }
