"""Milliseconds of both searches as the corpus grows from 10,000 to 300,000 documents."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from django.db.backends.base.base import BaseDatabaseWrapper

from cartrita_search.terminal import table

from .database import raw_connection, roomy
from .peers.cartrita import Cartrita
from .peers.data import synthetic, wordnet
from .peers.store import Batch, Server

#: WordNet's senses; beyond them synthetic documents made of theirs.
SIZES = (10_000, 30_000, 100_000, 300_000)
QUERIES = 300
WARM_UP = 50
CHUNK = 10_000


def run(connection: BaseDatabaseWrapper, rows: int | None = None) -> bool:
    """Print the curve up to `rows`. There is nothing to reach, so every run is a good one."""
    roomy(connection)
    stored, held_out = wordnet()
    stored = stored.part(0, SIZES[-2])
    made = synthetic(stored, SIZES[-1] - SIZES[-2])
    asked = held_out.part(0, WARM_UP + QUERIES)
    lines: list[list[object]] = []
    with raw_connection(connection) as pg:
        store = Cartrita(Server(pg.info.host, str(pg.info.port), pg.info.user, pg.info.dbname))
        first: list[float] = []
        for size in SIZES:
            if size > (rows or size):
                break
            # Anew: writing beside the index of the former size would take longer.
            store.create()
            for part in (stored.part(0, size), made.part(0, max(0, size - len(stored.ids)))):
                for start in range(0, len(part.ids), CHUNK):
                    store.load(store.prepare(part.part(start, start + CHUNK)))
            store.build_index()
            pg.execute("VACUUM (ANALYZE)")
            p50 = _measure(store, asked)
            first = first or p50
            ratios = [now / then for now, then in zip(p50, first, strict=True)]
            lines.append([f"{size:,}", p50[0], ratios[0], p50[1], ratios[1]])
        store.drop()
    headers = ["documents", "similarity_search p50, ms", "ratio", "search p50, ms", "ratio"]
    print(table(headers, lines, right=range(5), width=120))
    return True


def _measure(store: Cartrita, asked: Batch) -> list[float]:
    """Medians of similarity_search and of hybrid search, taken in turn, in milliseconds."""
    seconds: list[list[float]] = [[], []]
    searches: list[Callable[[str, list[float]], object]] = [
        lambda _, vector: store.vector(vector, 10),
        lambda text, vector: store.hybrid("search()", text, vector, 10),
    ]
    for text, vector in zip(asked.contents(), asked.vectors.tolist(), strict=True):
        for search, times in zip(searches, seconds, strict=True):
            started = time.perf_counter()
            search(text, vector)
            times.append(time.perf_counter() - started)
    return [float(np.median(times[WARM_UP:])) * 1000 for times in seconds]
