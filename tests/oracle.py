"""Rankings computed in Python from every stored row, to hold the SQL functions against.

Slow and plain on purpose: no index, no candidates, no SQL beyond reading the rows.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np
import psycopg

K1 = 1.2
B = 0.6
TITLE_FACTOR = 2


def lexeme_component(lexeme: str) -> int:
    """The component of a lexeme: 28 bits of its MD5, counted from one."""
    return int(hashlib.md5(lexeme.encode(), usedforsecurity=False).hexdigest()[:7], 16) + 1


def query_lexemes(pg: psycopg.Connection, text: str, language: str = "english") -> dict[str, int]:
    """How often each lexeme occurs in a query, dots between letters read as spaces."""
    rows = pg.execute(
        "SELECT lexeme, cardinality(positions) FROM unnest(to_tsvector(%s::regconfig, %s))",
        [language, re.sub(r"(?<=[^\W\d_])\.(?=[^\W\d_])", " ", text)],
    ).fetchall()
    return dict(rows)


def inverse_document_frequency(documents: int, document_frequency: int) -> float:
    """Never negative: the variant of Lucene."""
    return math.log(1 + (documents - document_frequency + 0.5) / (document_frequency + 0.5))


class Bm25:
    """Robertson and Zaragoza's BM25 over all documents of one language."""

    def __init__(self, pg: psycopg.Connection, language: str = "english") -> None:
        self.language = language
        self.frequencies: dict[UUID, dict[str, int]] = {}
        for key, lexeme, occurrences, in_title in pg.execute(
            """
            SELECT d.id, u.lexeme, cardinality(u.positions),
                cardinality(array_positions(u.weights, 'A'))
            FROM search_documents AS d
            LEFT JOIN LATERAL unnest(d.search_vector) AS u ON true
            WHERE d.language = %s
            """,
            [language],
        ):
            of_document = self.frequencies.setdefault(key, {})
            if lexeme is not None:
                of_document[lexeme] = occurrences + (TITLE_FACTOR - 1) * in_title
        self.lengths = {key: sum(of.values()) for key, of in self.frequencies.items()}
        self.document_frequency = Counter(
            lexeme for of_document in self.frequencies.values() for lexeme in of_document
        )
        self.average_length = (
            sum(self.lengths.values()) / len(self.lengths) if self.lengths else 0.0
        )

    def weights(self, key: UUID) -> dict[str, float]:
        """The weight of each lexeme of a document."""
        relative_length = self.lengths[key] / self.average_length
        return {
            lexeme: tf * (K1 + 1) / (tf + K1 * (1 - B + B * relative_length))
            for lexeme, tf in self.frequencies[key].items()
        }

    def scores(self, pg: psycopg.Connection, text: str) -> dict[UUID, float]:
        """The score of every document, 0 for one without any lexeme of the text."""
        wanted = {
            lexeme: occurrences
            * inverse_document_frequency(len(self.frequencies), self.document_frequency[lexeme])
            for lexeme, occurrences in query_lexemes(pg, text, self.language).items()
        }
        return {
            key: sum(
                weight * wanted[lexeme]
                for lexeme, weight in self.weights(key).items()
                if lexeme in wanted
            )
            for key in self.frequencies
        }


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Of the values as single precision holds them, in double precision."""
    x, y = (np.asarray(v, dtype=np.float32).astype(np.float64) for v in (a, b))
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


@dataclass(frozen=True)
class Fused:
    """One document of a fused ranking."""

    key: UUID
    score: float
    cosine: float | None
    bm25: float | None
    matched_by: str


def fuse(
    cosines: Mapping[UUID, float] | None,
    bm25: Mapping[UUID, float] | None,
    *,
    weights: tuple[float, float] = (0.7, 0.3),
    fusion: str = "weighted",
    threshold: float = -1,
    pool: int = 100,
    rrf_k: int = 60,
) -> list[Fused]:
    """The whole fused ranking; None for a leg that the query has no input for.

    Documents without a vector are not in `cosines`; `bm25` has all documents.
    """
    vector_weight, keyword_weight = weights
    by_vector = cosines is not None and (vector_weight > 0 or bm25 is None)
    by_keyword = bm25 is not None and (keyword_weight > 0 or cosines is None)
    if not by_vector or not by_keyword:
        vector_weight, keyword_weight = float(by_vector), float(by_keyword)
    vector_leg = _best(cosines or {}, pool, threshold) if by_vector else []
    keyword_leg = _best(bm25 or {}, pool, math.ulp(0.0)) if by_keyword else []
    union = {*vector_leg, *keyword_leg}
    highest = max(((bm25 or {}).get(key, 0.0) for key in union), default=0.0)

    def score(key: UUID) -> float:
        if fusion == "rrf":
            return sum(
                weight / (rrf_k + leg.index(key) + 1)
                for weight, leg in ((vector_weight, vector_leg), (keyword_weight, keyword_leg))
                if key in leg
            )
        keyword_part = (bm25 or {}).get(key, 0.0) / highest if highest else 0.0
        return vector_weight * (cosines or {}).get(key, 0.0) + keyword_weight * keyword_part

    def matched_by(key: UUID) -> str:
        if key not in keyword_leg:
            return "vector"
        return "hybrid" if key in vector_leg else "keyword"

    fused = [
        Fused(
            key,
            score(key),
            None if cosines is None else cosines.get(key),
            None if bm25 is None else bm25.get(key),
            matched_by(key),
        )
        for key in union
    ]
    return sorted(fused, key=lambda hit: (-hit.score, hit.key))


def _best(scores: Mapping[UUID, float], count: int, at_least: float) -> list[UUID]:
    eligible = [key for key, score in scores.items() if score >= at_least]
    return sorted(eligible, key=lambda key: (-scores[key], key))[:count]
