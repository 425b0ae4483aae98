"""Quality of hybrid_search against its time, by candidate pool and keyword budget."""

from __future__ import annotations

import time

import numpy as np
from django.db.backends.base.base import BaseDatabaseWrapper

from cartrita_search.terminal import table
from tests.collections_data import load_collection, ndcg_at_10, queries

from .database import raw_connection, truncate

COLLECTIONS = ("scifact", "vaswani")

#: candidate_pool, keyword_candidate_budget; the third is the default.
SETTINGS = ((30, 2500), (100, 1000), (100, 2500), (100, 10_000), (400, 20_000))


def run(connection: BaseDatabaseWrapper) -> bool:
    """Print the curve. There is nothing to reach, so every run is a good one."""
    rows = []
    with raw_connection(connection) as pg:
        for name in COLLECTIONS:
            truncate(pg)
            load_collection(pg, name)
            for pool, budget in SETTINGS:
                pg.execute(
                    "UPDATE search_settings SET candidate_pool = %s, "
                    "keyword_candidate_budget = %s",
                    [pool, budget],
                )
                scores, seconds = [], []
                for query in queries(name):
                    started = time.perf_counter()
                    found = pg.execute(
                        "SELECT source_id FROM hybrid_search(%s, %s)", [query.text, query.vector]
                    ).fetchall()
                    seconds.append(time.perf_counter() - started)
                    scores.append(ndcg_at_10(query.grades, [row[0] for row in found]))
                p50 = float(np.median(seconds)) * 1000
                rows.append((name, pool, budget, float(np.mean(scores)), p50))
        pg.execute(
            "UPDATE search_settings SET candidate_pool = DEFAULT, "
            "keyword_candidate_budget = DEFAULT"
        )
    headers = ["", "candidate_pool", "keyword_candidate_budget", "nDCG@10", "p50, ms"]
    print(table(headers, rows, right=(1, 2, 3, 4)))
    return True
