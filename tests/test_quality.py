"""Ranking quality on judged collections, through the SQL functions alone.

What others reach with the same vectors is in the README of the shared data.
"""

from __future__ import annotations

import numpy as np
import psycopg
import pytest

from tests.collections_data import (
    JudgedQuery,
    document_ids,
    document_vectors,
    load_collection,
    ndcg_at_10,
    needs_shared_data,
    queries,
)

#: nDCG@10 to reach with the default weights: by both legs, and by words alone.
FLOORS = [
    pytest.param("scifact", 0.73, 0.68, id="scifact"),
    pytest.param("cranfield", 0.41, 0.36, id="cranfield"),
    pytest.param("vaswani", 0.50, 0.43, id="vaswani"),
]


def found(
    pg: psycopg.Connection, text: str | None, query: JudgedQuery, *, by_vector: bool
) -> list[str]:
    rows = pg.execute(
        "SELECT source_id FROM hybrid_search(%s, %s)",
        [text, query.vector if by_vector else None],
    ).fetchall()
    return [source_id for (source_id,) in rows]


@pytest.mark.slow
@needs_shared_data
@pytest.mark.usefixtures("clean_tables")
@pytest.mark.parametrize(("name", "hybrid_floor", "keyword_floor"), FLOORS)
def test_judged_collections(
    pg: psycopg.Connection, name: str, hybrid_floor: float, keyword_floor: float
) -> None:
    load_collection(pg, name)
    ids = document_ids(name)
    hybrid, keyword, vector, exact, recall = [], [], [], [], []
    zero_hits = []
    for query in queries(name):
        hybrid.append(ndcg_at_10(query.grades, found(pg, query.text, query, by_vector=True)))
        by_words = found(pg, query.text, query, by_vector=False)
        keyword.append(ndcg_at_10(query.grades, by_words))
        if not by_words:
            zero_hits.append(query.text)
        by_meaning = found(pg, None, query, by_vector=True)
        vector.append(ndcg_at_10(query.grades, by_meaning))
        nearest = np.argsort(-(document_vectors(name) @ query.vector), kind="stable")[:10]
        exact.append(ndcg_at_10(query.grades, [ids[row] for row in nearest]))
        recall.append(len({ids[row] for row in nearest} & set(by_meaning)) / 10)
    print(name, *(f"{np.mean(x):.5f}" for x in (hybrid, keyword, vector, exact, recall)), np.sum(np.array(recall)<1), zero_hits)
