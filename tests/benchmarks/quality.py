"""nDCG@10 of the SQL functions on judged collections, default weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import psycopg
from django.db.backends.base.base import BaseDatabaseWrapper

from tests.collections_data import JudgedQuery, load_collection, ndcg_at_10, queries

from .database import raw_connection, truncate
from .report import Measurement, show

#: hybrid, keyword: at least; from the issue that set them.
TARGETS: dict[str, tuple[float, float | None]] = {
    "scifact": (0.735, 0.68),
    "cranfield": (0.415, None),
    "vaswani": (0.505, 0.44),
}


def run(connection: BaseDatabaseWrapper) -> bool:
    """Load and measure each collection."""
    with raw_connection(connection) as pg:
        return show(list(_measure(pg)))


def _measure(pg: psycopg.Connection) -> Iterator[Measurement]:
    zero_hits = 0
    for name, (hybrid_target, keyword_target) in TARGETS.items():
        truncate(pg)
        load_collection(pg, name)
        judged = queries(name)
        answers = {
            leg: [_search(pg, query, leg) for query in judged]
            for leg in ("hybrid", "rrf", "keyword", "vector", "similarity", "exact")
        }
        zero_hits += sum(not found for found in answers["keyword"])
        scores = {
            leg: float(
                np.mean([ndcg_at_10(q.grades, f) for q, f in zip(judged, found, strict=True)])
            )
            for leg, found in answers.items()
        }
        yield Measurement(f"{name}: hybrid", scores["hybrid"], at_least=hybrid_target)
        yield Measurement(f"{name}: hybrid, fusion rrf", scores["rrf"])
        yield Measurement(f"{name}: keyword alone", scores["keyword"], at_least=keyword_target)
        yield Measurement(f"{name}: exact vector scan", scores["exact"])
        for leg in ("vector", "similarity"):
            what = "hybrid_search without text" if leg == "vector" else "similarity_search"
            yield Measurement(f"{name}: {what}", scores[leg])
            pairs = zip(answers[leg], answers["exact"], strict=True)
            recall = np.mean([len({*found} & {*exact}) / len(exact) for found, exact in pairs])
            yield Measurement(f"{name}: {what}, recall@10", float(recall), at_least=0.95)
    yield Measurement("keyword answers without a hit", zero_hits, at_most=0)


def _search(pg: psycopg.Connection, query: JudgedQuery, leg: str) -> list[str]:
    statements = {
        "hybrid": "SELECT source_id FROM hybrid_search(%(text)s, %(vector)s)",
        "rrf": "SELECT source_id FROM hybrid_search(%(text)s, %(vector)s, fusion => 'rrf')",
        "keyword": "SELECT source_id FROM hybrid_search(%(text)s, NULL)",
        "vector": "SELECT source_id FROM hybrid_search(NULL, %(vector)s)",
        "similarity": "SELECT source_id FROM similarity_search(%(vector)s)",
        "exact": "SELECT source_id FROM embeddings ORDER BY embedding <=> %(vector)s, id LIMIT 10",
    }
    cursor = pg.execute(statements[leg], {"text": query.text, "vector": query.vector})
    return [row[0] for row in cursor]
