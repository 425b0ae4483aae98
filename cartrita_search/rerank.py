"""Re-scoring the best candidates of a search: the protocol, what is shipped, the configured one.

A person's `RetrievalConfig.rerank_enabled`, or the caller, asks for it;
`CARTRITA_SEARCH` says by what and how deep::

    CARTRITA_SEARCH = {
        "RERANKER": "cartrita_search.rerank.OnnxCrossEncoder",
        "RERANKER_OPTIONS": {"model_path": "/srv/model.onnx", "tokenizer_path": "/srv/tok.json"},
        "RERANK_DEPTH": 50,
    }
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, runtime_checkable
from uuid import UUID

from django.db import DEFAULT_DB_ALIAS, connections

from .conf import search_settings
from .errors import InvalidArgument, RerankerUnavailable, search_errors
from .onnx_model import OnnxModel
from .providers import Providers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_INSTALL_ONNX = "Run: pip install onnxruntime tokenizers, and check both paths."


@dataclass(frozen=True, slots=True)
class RerankQuery:
    """What was searched for: words, their vector, or both."""

    text: str | None = None
    vector: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document that the search found, with the score that it is ordered by so far."""

    id: UUID
    title: str
    content: str
    #: `retrieval.Hit.hybrid_score`, or the cosine of a similarity search.
    score: float
    #: Its stored vector; None where it has none or the reranker needs none.
    vector: Sequence[float] | None = None


@runtime_checkable
class Reranker(Protocol):
    """What search needs of a reranker. Called from several threads at once."""

    @property
    def needs_vectors(self) -> bool:
        """Whether candidates must bring their vectors; reading them costs a query."""
        ...

    def rerank(self, query: RerankQuery, candidates: Sequence[Candidate]) -> list[float]:
        """One score for each candidate, in their order; higher is better, ties go by id."""
        ...


class MaximalMarginalRelevance:
    """Near-duplicates of a better result move down; needs no model.

    Carbonell & Goldstein, "The Use of MMR, Diversity-Based Reranking", SIGIR 1998.
    With S the candidates chosen so far, the next one is

        argmax over d not in S of  (1 - diversity) * relevance(d) - diversity * redundancy(d, S)

        relevance(d)     = (score(d) - min score) / (max score - min score), over the
                           candidates; 1 for all where all scores are equal
        redundancy(d, S) = max(0, max over s in S of cosine(d, s))

    Ties (to nine decimals) go to the lower id. A document without a vector has the
    cosine 0 to every other. The value returned is the one that a candidate was chosen
    at: it never rises from one choice to the next, as S only grows and redundancy is
    never negative, so sorting by it (and by id) gives the order of choice.

    ``diversity`` is in [0, 1]: 0 leaves the order as it is, 1 looks at nothing but the
    vectors. Fifty candidates of 384 dimensions take a few milliseconds.

    Raises `InvalidArgument` for another diversity, or vectors of several dimensions.
    """

    needs_vectors = True

    def __init__(self, diversity: float = 0.3) -> None:
        if not 0 <= diversity <= 1:
            raise InvalidArgument(
                f"The diversity must be from 0 to 1, not {diversity!r}.",
                'Correct CARTRITA_SEARCH["RERANKER_OPTIONS"].',
            )
        self._diversity = diversity

    def rerank(self, query: RerankQuery, candidates: Sequence[Candidate]) -> list[float]:
        """The marginal relevance of each candidate when it was chosen, in [-1, 1]."""
        units = [_unit(candidate.vector) for candidate in candidates]
        if len({len(unit) for unit in units if unit is not None}) > 1:
            raise InvalidArgument(
                "The candidates' vectors differ in dimension.", "Rerank under one model at a time."
            )
        weighted = [(1 - self._diversity) * r for r in _relevance(candidates)]
        redundancy = [0.0] * len(candidates)
        values = [0.0] * len(candidates)
        left = sorted(range(len(candidates)), key=lambda i: candidates[i].id)

        def value(i: int) -> float:
            # Rounded, so that what is equal on paper is equal here, and goes by id.
            return round(weighted[i] - self._diversity * redundancy[i], 9)

        while left:
            chosen = max(left, key=value)  # of equals the first, which has the lowest id
            values[chosen] = value(chosen)
            left.remove(chosen)
            if (unit := units[chosen]) is None:
                continue
            for i in left:
                if (other := units[i]) is not None:
                    # |a - b|^2 = 2 - 2 cos: the standard library has this distance in C.
                    cosine = 1 - math.dist(unit, other) ** 2 / 2
                    redundancy[i] = max(redundancy[i], cosine)
        return values


class OnnxCrossEncoder:
    """A cross-encoder in ONNX form: query and document are read together, on the CPU.

    Each (query, title and content) pair is cut to ``max_tokens`` tokens, the longer
    of the two losing first. A model with one output gives its logit as the score;
    of a classifier with two, the score is the log-odds of class 1, its logit less
    that of class 0 (Nogueira & Cho, "Passage Re-ranking with BERT", 2019). A query
    without text leaves the scores as they are.

    ``threads`` defaults to the CPUs this process may run on; in a container whose
    quota is smaller than the machine, set it to the quota.

    Raises `RerankerUnavailable` if a package is missing, a file is missing or
    unreadable, or the model's output is neither.
    """

    needs_vectors = False

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        tokenizer_path: str | os.PathLike[str],
        *,
        max_tokens: int = 512,
        batch_size: int = 8,
        threads: int | None = None,
    ) -> None:
        self._model = OnnxModel(
            model_path,
            tokenizer_path,
            max_tokens=max_tokens,
            threads=threads,
            what="cross-encoder",
            unavailable=partial(RerankerUnavailable, hint=_INSTALL_ONNX),
        )
        self._batch_size = batch_size
        self._model.run([("a", "b")], 1, _scores)  # refuses a model of another kind now

    def rerank(self, query: RerankQuery, candidates: Sequence[Candidate]) -> list[float]:
        """The model's score of each candidate: a logit, or log-odds; unbounded."""
        if query.text is None or not query.text.strip():
            return [candidate.score for candidate in candidates]
        pairs = [(query.text, f"{c.title}\n{c.content}".strip()) for c in candidates]
        return self._model.run(pairs, self._batch_size, _scores)


def get_reranker() -> Reranker:
    """The reranker named by ``CARTRITA_SEARCH["RERANKER"]``, made once per process.

    Raises `RerankerUnavailable` if it cannot be imported or refuses its options.
    """
    settings = search_settings()
    return _rerankers.get(settings.reranker, settings.reranker_options)


def candidate_vectors(
    ids: Collection[UUID], model: str | None, *, using: str = DEFAULT_DB_ALIAS
) -> dict[UUID, list[float]]:
    """The stored vectors of these documents under the model, by document id.

    A document without one is not in the answer. No model means the database's
    default one.
    """
    with search_errors(), connections[using].cursor() as cursor:
        cursor.execute(
            """
            SELECT document_id, embedding::text FROM embeddings
            WHERE document_id = ANY (%s) AND embedding_model = coalesce(
                %s, (SELECT name FROM embedding_models WHERE is_default))
            """,
            [list(ids), model],
        )
        # pgvector's text form is a JSON array.
        return {document: json.loads(vector) for document, vector in cursor.fetchall()}


_rerankers = Providers(
    Reranker,  # type: ignore[type-abstract]
    "reranker",
    "RERANKER",
    RerankerUnavailable,
)


def _relevance(candidates: Sequence[Candidate]) -> list[float]:
    """The scores, brought to [0, 1]."""
    # Scores of a top fifty lie close together: divided by the highest alone, they would
    # count for little beside cosines. At diversity 0.3 nDCG@10 on SciFact, Cranfield and
    # Vaswani (120 queries, vectors alone) went from .688 .357 .434 to .693 .351 .434 this
    # way, and to .688 .323 .429 that way.
    scores = [candidate.score for candidate in candidates]
    lowest, span = min(scores, default=0), max(scores, default=0) - min(scores, default=0)
    return [(score - lowest) / span if span else 1.0 for score in scores]


def _unit(vector: Sequence[float] | None) -> tuple[float, ...] | None:
    """The vector at length 1; None for one without direction."""
    length = math.hypot(*vector) if vector is not None else 0.0
    return tuple(x / length for x in vector) if vector is not None and length else None


def _scores(output: NDArray[np.float32], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    """One score a row of the logits; `mask` is of no use here."""
    if output.ndim == 1:
        return output
    if output.ndim == 2 and output.shape[1] == 1:
        return output[:, 0]
    if output.ndim == 2 and output.shape[1] == 2:
        return output[:, 1] - output[:, 0]
    raise RerankerUnavailable(
        f"The cross-encoder's output has the shape {output.shape}.",
        "A model for re-ranking gives one score, or two classes, for each pair.",
    )
