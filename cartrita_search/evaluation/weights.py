"""Which weights rank best, and whether that is more than chance.

Every weight is judged on the same queries, so what counts is each query's
difference. Its mean's interval is from a paired bootstrap, and its p from a
sign-flip randomisation test, which is exact for few queries, where a bootstrap is
too sure of itself (Smucker, Allan and Carterette, "A comparison of statistical
significance tests for information retrieval evaluation", 2007).

The best of many weights looks better than it is on the very queries that chose it.
So the gain is held out: queries are dealt into folds, and the weight for each fold
is chosen on the others.
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
FOLDS = 10
RESAMPLES = 9999

#: Resamples made at once: memory, not time, is what more of them take.
_BATCH = 100


@dataclass(frozen=True, slots=True)
class Gain:
    """A mean difference per query, with its 95 % interval and two-sided p."""

    mean: float
    low: float
    high: float
    p: float

    @property
    def significant(self) -> bool:
        """Whether both tests say that it is not chance."""
        return (self.low > 0 or self.high < 0) and self.p < 1 - CONFIDENCE


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
    #: Held out.
    gain: Gain
    seed: int

    @property
    def worthwhile(self) -> bool:
        """Whether the best weights are better than the present ones beyond chance."""
        return self.best != self.present and self.gain.significant and self.gain.mean > 0

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
            f"{best} scores {DECIDING} {curve[self.best]:.3f}, "
            f"{curve[self.best] - curve[self.present]:.3f} above the present {present}. On "
            f"queries that did not choose it the gain is {gain.mean:.3f}: "
            f"{'significant' if self.worthwhile else 'not significant'} (95 % interval "
            f"{gain.low:.3f} to {gain.high:.3f}, p {gain.p:.3f}, {queries} queries). "
            f"{f'Take {best}' if self.worthwhile else 'Keep the present weights'}."
        )

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "vector_weights": list(self.weights),
            **{measure: self.curve(measure).tolist() for measure in self.scores},
            "present": self.weights[self.present],
            "best": self.weights[self.best],
            "held_out_gain": self.gain.mean,
            "interval": [self.gain.low, self.gain.high],
            "p": self.gain.p,
            "significant": self.worthwhile,
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

    `present` is one of them. `seed` decides folds and resamples.
    """
    at = list(weights).index(present)
    deciding = scores[DECIDING]
    gain = compare(held_out(deciding, at, seed), seed)
    return Sweep(tuple(weights), scores, at, _best(deciding, at), gain, seed)


def compare(differences: Array, seed: int) -> Gain:
    """Whether the mean of paired differences, one a query, is other than 0."""
    interval = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        batch=_BATCH,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    # With one sample, permuting "samples" flips signs.
    test = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=_BATCH,
        rng=np.random.default_rng(seed),
    )
    return Gain(
        float(differences.mean()), float(interval.low), float(interval.high), float(test.pvalue)
    )


def held_out(scores: Array, present: int, seed: int) -> Array:
    """Each query's gain over row `present`, by the row best on the other folds' queries."""
    queries = scores.shape[1]
    order = np.random.default_rng(seed).permutation(queries)
    gains = np.zeros(queries)
    for fold in np.array_split(order, min(FOLDS, queries)):
        chosen = _best(np.delete(scores, fold, axis=1), present)
        gains[fold] = scores[chosen, fold] - scores[present, fold]
    return gains


def band(sweep: Sweep) -> tuple[Array, Array]:
    """Low and high 95 % bound of `DECIDING` at each weight, relative to the present ones.

    That is the present mean plus the paired bootstrap interval of the difference: a
    weight whose band lies above the present mean is better beyond chance, taken alone.
    """
    scores = sweep.scores[DECIDING]
    present = scores[sweep.present]
    interval = stats.bootstrap(
        (scores - present,),
        np.mean,
        axis=1,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        batch=_BATCH,
        rng=np.random.default_rng(sweep.seed),
    ).confidence_interval
    return present.mean() + interval.low, present.mean() + interval.high


def _best(scores: Array, present: int) -> int:
    """The row of the highest mean; of equals the one nearest to `present`."""
    means = scores.mean(axis=1)
    tied = np.flatnonzero(means >= means.max() - 1e-12)
    return int(tied[np.argmin(np.abs(tied - present))])
