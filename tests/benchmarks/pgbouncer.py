"""What PgBouncer in transaction mode adds to a similarity search."""

from __future__ import annotations

import random
import time

import numpy as np
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from cartrita_search import retrieval
from tests.collections_data import MODEL, SHARED_DATA, document_vectors, load_collection
from tests.pgbouncer import pgbouncer

from .database import raw_connection, truncate
from .report import Measurement, show

DOCUMENTS = 20_000
QUERIES = 2_000
WARM_UP = 100


def run(connection: BaseDatabaseWrapper) -> bool:
    """The same queries, each by both ways one right after the other, in an order drawn anew."""
    truth = np.load(SHARED_DATA / "wordnet" / "ann_gt.npz")
    with raw_connection(connection) as pg:
        truncate(pg)
        load_collection(pg, "wordnet", truth["base_rows"][:DOCUMENTS])
    given = connection.settings_dict
    database = {
        "host": given["HOST"],
        "port": given["PORT"],
        "user": given["USER"],
        "dbname": given["NAME"],
    }
    vectors = document_vectors("wordnet")[truth["query_rows"]]
    with pgbouncer(database) as through:
        seconds: dict[str, list[float]] = {}
        for alias, where in (("direct", database), ("pooled", through)):
            connections.settings[alias] = given | {
                "ENGINE": "django.db.backends.postgresql",
                "HOST": str(where["host"]),
                "PORT": str(where["port"]),
                "OPTIONS": {},  # nothing prepared, which PgBouncer 1.18 could not carry
            }
            seconds[alias] = []
        for n in range(QUERIES + WARM_UP):
            for alias in random.sample(sorted(seconds), 2):
                began = time.perf_counter()
                retrieval.similarity_search(vectors[n % len(vectors)], model=MODEL, using=alias)
                seconds[alias].append(time.perf_counter() - began)
        for alias in seconds:
            connections[alias].close()
    taken = {alias: np.array(times[WARM_UP:]) * 1000 for alias, times in seconds.items()}
    p50 = {alias: float(np.median(times)) for alias, times in taken.items()}
    return show(
        [
            Measurement("similarity_search, direct: p50, ms", p50["direct"]),
            Measurement("similarity_search, PgBouncer: p50, ms", p50["pooled"]),
            Measurement("added to p50, ms", p50["pooled"] - p50["direct"], at_most=0.3),
        ]
    )
