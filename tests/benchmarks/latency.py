"""Milliseconds of search on 117,000 WordNet senses, beside a prepared pgvector statement."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import numpy as np
from django.db.backends.base.base import BaseDatabaseWrapper
from pgvector import HalfVector

from cartrita_search import retrieval
from tests.collections_data import (
    MODEL,
    SHARED_DATA,
    document_ids,
    document_vectors,
    documents,
    load_collection,
)

from .database import raw_connection, truncate
from .peers.raw import statement
from .report import Measurement, show

#: Of the 1,000 held-out queries; those before warm caches and plans up.
QUERIES = 500
WARM_UP = 50


def run(connection: BaseDatabaseWrapper) -> bool:
    """Load, then time each kind of search in turn, query by query."""
    truth = np.load(SHARED_DATA / "wordnet" / "ann_gt.npz")
    ids = document_ids("wordnet")
    vectors = document_vectors("wordnet")
    rows = truth["query_rows"][: WARM_UP + QUERIES]
    wanted = {ids[row] for row in rows}
    # Glosses quote examples; as a query that would demand the very phrase.
    texts = {
        d.id: f"{d.title} {d.text}".replace('"', "")
        for d in documents("wordnet")
        if d.id in wanted
    }

    with raw_connection(connection) as pg:
        truncate(pg)
        load_collection(pg, "wordnet", truth["base_rows"])
        width = pg.execute(
            "SELECT index_method, ef_search FROM embedding_models WHERE name = %s", [MODEL]
        ).fetchone()
        if width is None or width[0] != "hnsw":
            raise RuntimeError(f"expected an HNSW index, got {width}")
        # The same width for both, or the ratio would say nothing.
        pg.execute("SELECT set_config('hnsw.ef_search', %s, false)", [str(width[1])])

        found: dict[int, list[str]] = {}

        by_hand = statement(pg)

        def raw(row: int) -> None:
            query = HalfVector(vectors[row])
            pg.execute(by_hand, [query, query, 10], prepare=True, binary=True).fetchall()

        def similarity(row: int) -> None:
            hits = retrieval.similarity_search(vectors[row], model=MODEL)
            found[row] = [hit.source_id for hit in hits]

        def hybrid(row: int) -> None:
            retrieval.search(texts[ids[row]], vector=vectors[row], model=MODEL)

        def keyword(row: int) -> None:
            retrieval.keyword_search(texts[ids[row]])

        # In an order drawn anew each time: the first finds the caches cold.
        order = random.Random(1)
        searches: list[Callable[[int], None]] = [raw, similarity, hybrid, keyword]
        seconds: dict[str, list[float]] = {search.__name__: [] for search in searches}
        for row in rows:
            for search in order.sample(searches, len(searches)):
                started = time.perf_counter()
                search(int(row))
                seconds[search.__name__].append(time.perf_counter() - started)

    base_ids = [ids[row] for row in truth["base_rows"]]
    recall = np.mean(
        [
            len({base_ids[i] for i in nearest[:10]}.intersection(found[int(row)])) / 10
            for row, nearest in zip(rows, truth["gt_idx_in_base"], strict=False)
        ]
    )
    p50, p95 = (
        {
            name: float(np.quantile(times[WARM_UP:], quantile)) * 1000
            for name, times in seconds.items()
        }
        for quantile in (0.5, 0.95)
    )
    information = [
        Measurement(f"{name}: p{percent}, ms", times[name])
        for name in seconds
        for percent, times in ((50, p50), (95, p95))
    ]
    return show(
        [
            *information,
            Measurement("similarity_search: recall@10", float(recall), at_least=0.95),
            Measurement(
                "similarity_search / raw, p50", p50["similarity"] / p50["raw"], at_most=1.4
            ),
            Measurement("hybrid_search: p95 / p50", p95["hybrid"] / p50["hybrid"], at_most=2.5),
            Measurement("hybrid_search / raw, p50", p50["hybrid"] / p50["raw"]),
            Measurement("keyword_search / raw, p50", p50["keyword"] / p50["raw"]),
        ]
    )
