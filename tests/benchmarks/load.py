"""Minutes of searches and upserts from 32 connections: errors, p99, and memory."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from django.db import close_old_connections, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import override_settings

from cartrita_search import metrics
from cartrita_search.ingest import Document, upsert_documents
from cartrita_search.retrieval import keyword_search, search, similarity_search
from tests.collections_data import (
    MODEL,
    SHARED_DATA,
    document_vectors,
    documents,
    load_collection,
)

from .database import raw_connection, truncate
from .report import Measurement, show

SECONDS = 300
CONNECTIONS = 32
DOCUMENTS = 20_000
#: Of the requests, how many store something.
UPSERTS = 0.2
#: Memory counts from here on: caches and buffers fill at first.
WARM_UP_SHARE = 0.2
MEGABYTE = 1 << 20


@dataclass
class Done:
    """What one thread did."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"search": [], "upsert": []})
    errors: list[str] = field(default_factory=list)


def run(connection: BaseDatabaseWrapper, seconds: int | None = None) -> bool:
    """This process is the web process: a thread a connection, recording its searches."""
    import psutil

    seconds = seconds or SECONDS
    truth = np.load(SHARED_DATA / "wordnet" / "ann_gt.npz")
    with raw_connection(connection) as pg:
        truncate(pg)
        load_collection(pg, "wordnet", truth["base_rows"][:DOCUMENTS])
    vectors = document_vectors("wordnet")[truth["query_rows"]]
    texts = [document.text for document, _ in zip(documents("wordnet"), range(5000), strict=False)]
    stop = threading.Event()
    process = psutil.Process()
    memory: list[int] = []
    with (
        override_settings(CARTRITA_SEARCH=_recorded()),
        ThreadPoolExecutor(CONNECTIONS) as threads,
    ):
        running = [
            threads.submit(_requests, thread, stop, vectors, texts)
            for thread in range(CONNECTIONS)
        ]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            stop.wait(min(1.0, seconds / 100))
            memory.append(process.memory_info().rss)
        stop.set()
        done = [each.result() for each in running]
        metrics.flush()
    errors = [error for each in done for error in each.errors]
    for error in sorted(set(errors))[:5]:
        print(error)
    settled = memory[int(len(memory) * WARM_UP_SHARE) :]
    tenth = max(1, len(settled) // 10)
    begin, finish = np.median(settled[:tenth]), np.median(settled[-tenth:])
    kinds = {
        kind: [s for each in done for s in each.seconds[kind]] for kind in ("search", "upsert")
    }
    figures = [
        Measurement("seconds", seconds),
        Measurement("errors", len(errors), at_most=0),
    ]
    for kind, times in kinds.items():
        figures += [
            Measurement(f"{kind}: requests a second", len(times) / seconds),
            Measurement(f"{kind}: p50, ms", float(np.percentile(times, 50)) * 1000),
            Measurement(f"{kind}: p99, ms", float(np.percentile(times, 99)) * 1000),
        ]
    figures += [
        Measurement("memory of the process after warming up, MB", float(begin) / MEGABYTE),
        Measurement("memory at the end, MB", float(finish) / MEGABYTE),
        Measurement("end / after warming up", float(finish / begin), at_most=1.05),
    ]
    return show(figures)


def _recorded() -> dict[str, object]:
    from django.conf import settings

    return settings.CARTRITA_SEARCH | {"RECORD_SEARCHES": True}


def _requests(thread: int, stop: threading.Event, vectors: np.ndarray, texts: list[str]) -> Done:
    """Requests, one after the other, each bracketed as Django brackets one."""
    draw = random.Random(thread)
    done = Done()
    while not stop.is_set():
        vector, text = vectors[draw.randrange(len(vectors))], draw.choice(texts)
        kind = "upsert" if draw.random() < UPSERTS else "search"
        began = time.perf_counter()
        close_old_connections()
        try:
            if kind == "upsert":
                # Of so few keys that new rows become rare: most replace another text.
                key = str(draw.randrange(2000))
                upsert_documents([Document("load", key, "", text, vector.tolist())], model=MODEL)
            else:
                _search(draw.random(), text, vector)
        except Exception as error:  # noqa: BLE001 - counted and shown
            done.errors.append(f"{kind}: {type(error).__name__}: {error}")
        else:
            done.seconds[kind].append(time.perf_counter() - began)
        close_old_connections()
    connections.close_all()
    return done


def _search(which: float, text: str, given: np.ndarray) -> None:
    vector = cast("Sequence[float]", given)
    query = " ".join(text.split()[:8]).replace('"', "")
    if which < 0.5:
        search(query, vector=vector, model=MODEL)
    elif which < 0.75:
        keyword_search(query)
    else:
        similarity_search(vector, model=MODEL)
