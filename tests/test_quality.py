"""Ranking quality on judged collections, through the SQL functions alone.

What others reach with the same vectors is in the README of the shared data.
"""

from __future__ import annotations

from statistics import fmean

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
    pytest.param("scifact", 0.735, 0.68, id="scifact"),
    pytest.param("cranfield", 0.415, 0.36, id="cranfield"),
    pytest.param("vaswani", 0.505, 0.44, id="vaswani"),
]


@pytest.mark.slow
@needs_shared_data
@pytest.mark.usefixtures("clean_tables")
@pytest.mark.parametrize(("name", "hybrid_floor", "keyword_floor"), FLOORS)
def test_judged_collection(
    pg: psycopg.Connection, name: str, hybrid_floor: float, keyword_floor: float
) -> None:
    """Both legs, words alone and meaning alone; words find something for every query."""
    load_collection(pg, name)
    judged = queries(name)
    by_both = [_found(pg, query.text, query) for query in judged]
    by_words = [_found(pg, query.text, None) for query in judged]
    by_meaning = [_found(pg, None, query) for query in judged]
    exact = [_nearest(name, query) for query in judged]

    assert [query.text for query, hits in zip(judged, by_words, strict=True) if not hits] == []
    assert _mean_ndcg(judged, by_both) >= hybrid_floor
    assert _mean_ndcg(judged, by_words) >= keyword_floor
    # An HNSW graph may miss a neighbour now and then; the ranking must not feel it.
    assert _mean_ndcg(judged, by_meaning) == pytest.approx(_mean_ndcg(judged, exact), abs=0.001)
    recall = fmean(
        len(set(hits) & set(truth)) / 10 for hits, truth in zip(by_meaning, exact, strict=True)
    )
    assert recall >= 0.99


def _found(pg: psycopg.Connection, text: str | None, by_vector: JudgedQuery | None) -> list[str]:
    rows = pg.execute(
        "SELECT source_id FROM hybrid_search(%s, %s)",
        [text, None if by_vector is None else by_vector.vector],
    ).fetchall()
    return [source_id for (source_id,) in rows]


def _nearest(name: str, query: JudgedQuery) -> list[str]:
    ids = document_ids(name)
    cosines = document_vectors(name) @ query.vector
    return [ids[row] for row in np.argsort(-cosines, kind="stable")[:10]]


def _mean_ndcg(judged: list[JudgedQuery], found: list[list[str]]) -> float:
    return fmean(ndcg_at_10(query.grades, hits) for query, hits in zip(judged, found, strict=True))
