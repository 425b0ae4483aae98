"""How good rankings are, by `ir-measures` (whose trec_eval is the field's own)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import ir_measures
import numpy as np
from numpy.typing import NDArray

#: What names a document.
K = TypeVar("K", bound=Hashable)

#: Normalised discounted cumulative gain of the first ten, the gain of a document
#: being its grade (Jaervelin and Kekaelaeinen 2002); the share of the relevant documents
#: among the first hundred; one over the rank of the first relevant one, 0 beyond ten.
#: Relevant is what has a grade above 0.
MEASURES = ("nDCG@10", "R@100", "RR@10")

#: The results of a search that the measures look at.
DEPTH = 100


def measure(
    rankings: Sequence[Sequence[K]], grades: Sequence[Mapping[K, int]]
) -> dict[str, NDArray[np.float64]]:
    """Each of `MEASURES`, in [0, 1], for every query: `rankings` best first, beside `grades`.

    A document that was not judged, or graded below 0, counts like one graded 0. A
    query without a relevant document measures 0. A ranking names no document twice.
    """
    if not grades:
        return {name: np.zeros(0) for name in MEASURES}
    qrels: dict[str, dict[str, int]] = {}
    run: dict[str, dict[str, float]] = {}
    for position, (found, judged) in enumerate(zip(rankings, grades, strict=True)):
        names: dict[K, str] = {}
        qrels[str(position)] = {
            names.setdefault(document, str(len(names))): max(0, grade)
            for document, grade in judged.items()
        }
        # trec_eval ranks by score and, of equals, by name.
        run[str(position)] = {
            names.setdefault(document, str(len(names))): -float(rank)
            for rank, document in enumerate(found)
        }
    values = {name: np.zeros(len(grades)) for name in MEASURES}
    wanted = [ir_measures.parse_measure(name) for name in MEASURES]
    for metric in ir_measures.iter_calc(wanted, qrels, run):
        values[str(metric.measure)][int(metric.query_id)] = metric.value
    return values
