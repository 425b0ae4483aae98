"""Which weights rank best, and whether that is more than chance.

Every weight is judged on the same queries, so what counts is each query's difference
to the present weights. Its mean's interval is from a paired bootstrap. A bootstrap is
too sure of itself where queries are few, and knows nothing of the other weights: the
best of many looks better than it is, on the very queries that chose it. So p is from a
randomisation test of the highest of all weights: how often would the best of them be
so far above the present, if each query's difference could as well have had the other
sign? (Smucker, Allan and Carterette, "A comparison of statistical significance tests
for information retrieval evaluation", 2007; Westfall and Young, "Resampling-based
multiple testing", 1993, for the maximum.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

#: Vector weights that a sweep tries, beside the present one.
GRID = tuple(step / 20 for step in range(21))

#: The measure that decides.
DECIDING = "nDCG@10"

CONFIDENCE = 0.95
RESAMPLES = 9999


@dataclass(frozen=True, slots=True)
class Gain:
    """Mean difference of the best weights to the present ones, over queries."""

    mean: float
    #: 95 % interval of the mean.
    low: float
    high: float
    #: Chance that the best of all weights tried would look so good if none were better.
    p: float

    @property
    def significant(self) -> bool:
        """Whether it is better beyond chance, by interval and p."""
        return self.low > 0 and self.p < 1 - CONFIDENCE


@dataclass(frozen=True, slots=True)
class Sweep:
    """Measures by weight, and the best weight against the present one."""

    #: Vector weights, ascending; keyword weight is what is left to 1.
    weights: tuple[float, ...]
    #: By measure: a row a weight, a column a query.
    scores: dict[str, Array]
    #: Positions in `weights`.
    present: int
    best: int
    gain: Gain
    seed: int

    def curve(self, measure: str = DECIDING) -> Array:
        """The mean over queries at each of `weights`."""
        curve: Array = self.scores[measure].mean(axis=1)
        return curve

    @property
    def verdict(self) -> str:
        """What to do, in words."""
        curve, queries = self.curve(), self.scores[DECIDING].shape[1]
        best, present = (pair(self.weights[at]) for at in (self.best, self.present))
        if self.best == self.present:
            return (
                f"None of the {len(self.weights)} weights tried scores above the present "
                f"{present}: {DECIDING} {curve[self.present]:.3f}, {queries} queries. Keep them."
            )
        gain = self.gain
        return (
            f"{best} scores {DECIDING} {curve[self.best]:.3f}, {gain.mean:.3f} above the present "
            f"{present}: {'significant' if gain.significant else 'not significant'} "
            f"(95 % interval {gain.low:.3f} to {gain.high:.3f}, p {gain.p:.3f} for the best of "
            f"{len(self.weights)}, {queries} queries). "
            f"{f'Take {best}' if gain.significant else 'Keep the present weights'}."
        )

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "vector_weights": list(self.weights),
            **{measure: self.curve(measure).tolist() for measure in self.scores},
            "present": self.weights[self.present],
            "best": self.weights[self.best],
            "gain": self.gain.mean,
            "interval": [self.gain.low, self.gain.high],
            "p": self.gain.p,
            "significant": self.gain.significant,
            "seed": self.seed,
            "verdict": self.verdict,
        }


def pair(vector_weight: float) -> str:
    """Both weights, as 0.7/0.3."""
    return f"{vector_weight:.4g}/{1 - vector_weight:.4g}"


def grid(present: float) -> tuple[float, ...]:
    """`GRID` and the present vector weight, ascending."""
    others = (weight for weight in GRID if abs(weight - present) > 1e-9)
    return tuple(sorted((*others, present)))


def judge(weights: Sequence[float], scores: dict[str, Array], present: float, seed: int) -> Sweep:
    """The sweep whose `scores` hold, by measure, a row for each of `weights`.

    `present` is one of them. `seed` decides the resamples.
    """
    at = list(weights).index(present)
    means = scores[DECIDING].mean(axis=1)
    # Of equals the one nearest to the present, for fear of a change for nothing.
    tied = np.flatnonzero(means >= means.max() - 1e-12)
    best = int(tied[np.argmin(np.abs(tied - at))])
    differences = scores[DECIDING] - scores[DECIDING][at]
    low, high = _intervals(differences[best : best + 1], seed)
    gain = Gain(
        float(differences[best].mean()),
        float(low[0]),
        float(high[0]),
        p_of_best(differences, best, seed),
    )
    return Sweep(tuple(weights), scores, at, best, gain, seed)


def p_of_best(differences: Array, best: int, seed: int) -> float:
    """How often the highest of all rows is as far above 0 as row `best`, if signs are chance.

    `differences` has a row a weight, a column a query. A query's sign is turned in all
    rows at once, which keeps what the weights have in common. Rows are compared in
    units of their own spread, lest the wildest decide.
    """
    spread = np.sqrt((differences**2).mean(axis=1))
    if not spread[best]:
        return 1.0
    rows = differences[spread > 0] / spread[spread > 0, None]
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (RESAMPLES, rows.shape[1]))
    highest = (signs @ rows.T).max(axis=1)
    observed = differences[best].sum() / spread[best]
    return float((1 + np.count_nonzero(highest >= observed - 1e-9)) / (1 + RESAMPLES))


def band(sweep: Sweep) -> tuple[Array, Array]:
    """Low and high 95 % bound of `DECIDING` at each weight, relative to the present ones.

    That is the present mean plus the interval of the difference: a weight whose band
    lies above the present mean is better beyond chance, if it alone had been tried.
    """
    scores = sweep.scores[DECIDING]
    present = scores[sweep.present]
    low, high = _intervals(scores - present, sweep.seed)
    return present.mean() + low, present.mean() + high


def _intervals(differences: Array, seed: int) -> tuple[Array, Array]:
    """The 95 % bootstrap interval of each row's mean."""
    interval = stats.bootstrap(
        (differences,),
        np.mean,
        axis=1,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        batch=100,  # resamples made at once: more take memory, and no less time
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return np.asarray(interval.low), np.asarray(interval.high)
