"""Putting judged queries to the searches, and a collection into a scratch database."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO, cast
from uuid import UUID

import numpy as np
from django.db import DEFAULT_DB_ALIAS, connections
from numpy.typing import NDArray

from .. import metrics
from ..embedders import Embedder, get_embedder
from ..errors import InvalidArgument, InvalidWeights, search_errors
from ..ingest import Document, finish_load, upsert_documents
from ..models import RetrievalConfig, SearchSettings
from ..retrieval import Hit, Options, keyword_search, search, similarity_search
from ..terminal import WIDTH, progress, table
from .judgements import (
    SOURCE,
    Collection,
    JudgedQuery,
    Judgements,
    Key,
    read_collection,
    read_corpus,
    read_judgements,
)
from .measures import DEPTH, MEASURES, measure
from .scratch import scratch_database
from .weights import Array, Sweep, grid, judge, pair

SEARCHES = ("vector", "keyword", "hybrid", "rrf")

#: Where neither the site nor the call says otherwise; as in hybrid_search.
DEFAULT_VECTOR_WEIGHT = 0.7

#: The model of a folder's own vectors, in the scratch database.
FOLDER_MODEL = "folder-vectors"

#: Documents embedded at a time.
_CHUNK = 128


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How good the searches are on some judged queries."""

    name: str
    #: The database searched.
    database: str
    documents: int
    model: str
    queries: int
    judgements: int
    #: How many queries without a relevant document, and judgements of something unknown.
    left_out: Mapping[str, int]
    #: Of the hybrid searches.
    vector_weight: float
    #: Mean of each of `MEASURES`, by each of `SEARCHES`.
    means: Mapping[str, Mapping[str, float]]
    sweep: Sweep | None

    def __str__(self) -> str:
        parts = [
            f"{self.name}: {self.documents} documents, {self.queries} judged queries, "
            f"{self.judgements} judgements, model {self.model}",
            *self._left_out(),
            "",
            table(
                ["", *MEASURES],
                [
                    (
                        f"{name} {pair(self.vector_weight)}"
                        if name in {"hybrid", "rrf"}
                        else name,
                        *means.values(),
                    )
                    for name, means in self.means.items()
                ],
                right=range(1, 1 + len(MEASURES)),
            ),
        ]
        if self.sweep is not None:
            curves = [self.sweep.curve(name) for name in MEASURES]
            marks = {self.sweep.best: "best", self.sweep.present: "present"}
            if self.sweep.best == self.sweep.present:
                marks[self.sweep.best] = "present, best"
            rows = [
                (pair(weight), *(float(curve[at]) for curve in curves), marks.get(at, ""))
                for at, weight in enumerate(self.sweep.weights)
            ]
            headers = ["vector/keyword", *MEASURES, ""]
            parts += [
                "",
                table(headers, rows, right=range(1, 4)),
                "",
                textwrap.fill(self.sweep.verdict, WIDTH),
            ]
        return "\n".join(parts)

    def _left_out(self) -> list[str]:
        said = {
            "queries": "queries without a relevant document",
            "judgements": "judgements of an unknown query or document",
        }
        counted = [
            f"{self.left_out[key]} {what}" for key, what in said.items() if self.left_out[key]
        ]
        return [f"Left out: {', '.join(counted)}."] if counted else []

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "name": self.name,
            "documents": self.documents,
            "model": self.model,
            "queries": self.queries,
            "judgements": self.judgements,
            "left_out": dict(self.left_out),
            "weights": [self.vector_weight, round(1 - self.vector_weight, 9)],
            "searches": {name: dict(means) for name, means in self.means.items()},
            "sweep": None if self.sweep is None else self.sweep.as_dict(),
        }


def evaluate_collection(
    folder: Path,
    *,
    weights: tuple[float, float] | None = None,
    sweep: bool = False,
    seed: int = 0,
    keep: bool = False,
    using: str = DEFAULT_DB_ALIAS,
    stream: TextIO | None = None,
) -> Evaluation:
    """Measure the searches on a BEIR-style folder (see `read_collection`).

    The folder goes into a scratch database (see `scratch_database`) on the server of
    `using`, whose own documents are neither read nor touched. It gets an index and
    statistics as any corpus of its size. Without vectors of its own it is embedded by
    the configured embedder. `weights` are vector's and keyword's; by default the
    site's active `RetrievalConfig`, else 0.7 and 0.3. Progress goes to `stream`, by
    default stderr.

    Raises a `SearchError` for what cannot be evaluated; the scratch database is
    dropped then too.
    """
    stream = stream or sys.stderr
    with search_errors():
        vector_weight = _vector_weight(weights, using)
        collection = read_collection(folder)
        _check(collection.judgements, sweep, seed)
        embedder = get_embedder() if collection.query_vectors is None else None
        with scratch_database(using, keep=keep) as scratch:
            _load(collection, embedder, scratch, stream)
            vectors: Iterable[Sequence[float]]
            if embedder is None:
                vectors = cast("Any", collection.query_vectors)
            else:
                vectors = _query_vectors(embedder, collection.judgements)
            return _evaluate(
                folder.resolve().name,
                collection.judgements,
                vectors,
                FOLDER_MODEL if embedder is None else embedder.name,
                _Run(vector_weight, sweep, seed, scratch, stream),
            )


def evaluate_live(
    judgements: Path,
    *,
    weights: tuple[float, float] | None = None,
    sweep: bool = False,
    seed: int = 0,
    using: str = DEFAULT_DB_ALIAS,
    stream: TextIO | None = None,
) -> Evaluation:
    """Measure the searches on the documents of `using` by a file (see `read_judgements`).

    Only searches run: nothing is written, no metrics either. Queries are embedded by the
    configured embedder and put to its model. A query with a user searches what that
    person may see, with the similarity threshold of their `RetrievalConfig`, but with the
    weights that are evaluated, and not re-ranked. Other arguments as for `evaluate_collection`.

    A judgement without ``chunk_index`` is about the whole source row: the best of its
    chunks counts, and the others are passed over.
    """
    with search_errors():
        judged = read_judgements(judgements, using)
    return evaluate_judgements(
        judgements.name,
        judged,
        weights=weights,
        sweep=sweep,
        seed=seed,
        using=using,
        stream=stream,
    )


def evaluate_judgements(
    name: str,
    judged: Judgements,
    *,
    weights: tuple[float, float] | None = None,
    sweep: bool = False,
    seed: int = 0,
    using: str = DEFAULT_DB_ALIAS,
    stream: TextIO | None = None,
) -> Evaluation:
    """As `evaluate_live`, by judgements from elsewhere than a file."""
    stream = stream or sys.stderr
    with search_errors():
        vector_weight = _vector_weight(weights, using)
        _check(judged, sweep, seed)
        embedder = get_embedder()
        return _evaluate(
            name,
            judged,
            _query_vectors(embedder, judged),
            embedder.name,
            _Run(vector_weight, sweep, seed, using, stream),
        )


# --- A collection into the scratch database -----------------------------------


def _load(collection: Collection, embedder: Embedder | None, using: str, stream: TextIO) -> None:
    """Store the corpus, then build what a corpus of its size has in production."""
    model = FOLDER_MODEL if embedder is None else embedder.name
    label = "Loading" if embedder is None else f"Embedding with {model}"
    with progress(collection.documents, label, stream) as advance:
        # Told by chunk: embedding a batch of upsert_documents takes minutes.
        upsert_documents(
            _documents(collection, embedder, advance),
            model=model,
            on_error="raise",
            index="keep",
            using=using,
        )
    finish_load(model, using=using)


def _documents(
    collection: Collection, embedder: Embedder | None, advance: Callable[[int], object]
) -> Iterator[Document]:
    corpus = read_corpus(collection.folder)
    while chunk := list(islice(corpus, _CHUNK)):
        vectors: Any
        if embedder is not None:
            vectors = embedder.embed_documents([f"{doc.title}\n{doc.text}" for doc in chunk])
        else:
            rows = [collection.rows[doc.id] for doc in chunk]
            vectors = np.asarray(cast("Any", collection.document_vectors)[rows], np.float32)
        for doc, vector in zip(chunk, vectors, strict=True):
            yield Document(SOURCE, doc.id, doc.title, doc.text, vector)
        advance(len(chunk))


# --- Searching ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Run:
    """What an evaluation does with its queries, and where."""

    vector_weight: float
    sweep: bool
    seed: int
    using: str
    stream: TextIO


class Window(NamedTuple):
    """A step in which hybrid_search ranks: up to so many results, from so many of each leg."""

    results: int
    pool: int


@dataclass(frozen=True, slots=True)
class Candidates:
    """What both legs propose for a query, each candidate with both its exact scores.

    That is all that a ranking by any weights takes: the arithmetic of hybrid_search,
    done here, instead of a search for each weight. (Quoted phrases and -negations
    restrict the vector leg among its candidates, of which a search for fewer results
    has fewer: only there may a ranking differ, far down.)
    """

    #: In the order of the documents' ids, which break ties.
    keys: list[Key]
    cosine: Array
    bm25: Array
    #: The lower of the ranks within the two legs, from 0.
    rank: NDArray[np.int64]
    #: The rankings of one leg alone, by vector weight 0 and 1.
    alone: dict[float, list[Key]]

    @classmethod
    def fetch(cls, query: JudgedQuery, vector: Sequence[float], options: Options) -> Candidates:
        """By one search for each leg, ``options["limit"]`` being the candidates of each."""
        legs = {
            weight: search(query.text, vector=vector, vector_weight=weight, **options)
            for weight in (0.0, 1.0)
        }
        hits = {hit.id: hit for leg in legs.values() for hit in leg}
        ranks: dict[UUID, int] = {}
        for leg in legs.values():
            for rank, hit in enumerate(leg):
                ranks[hit.id] = min(rank, ranks.get(hit.id, rank))
        union = [hits[key] for key in sorted(hits)]
        return cls(
            [_key(hit, query) for hit in union],
            np.array([hit.vector_similarity or 0.0 for hit in union]),
            np.array([hit.keyword_score or 0.0 for hit in union]),
            np.array([ranks[hit.id] for hit in union], np.int64),
            {weight: [_key(hit, query) for hit in leg] for weight, leg in legs.items()},
        )

    def ranking(self, vector_weight: float, windows: Sequence[Window]) -> list[Key]:
        """The first `DEPTH` by these weights, as hybrid_search ranks them."""
        if vector_weight in self.alone:
            return _distinct(self.alone[vector_weight])
        found: dict[int, None] = {}
        for window in windows:
            proposed = np.flatnonzero(self.rank < window.pool)
            highest = self.bm25[proposed].max(initial=0) or 1.0
            scores = vector_weight * self.cosine[proposed] + (1 - vector_weight) * (
                self.bm25[proposed] / highest
            )
            best = proposed[np.argsort(-scores, kind="stable")].tolist()
            new = [at for at in best if at not in found]
            found |= dict.fromkeys(new[: window.results - len(found)])
        return _distinct([self.keys[at] for at in found])


def hybrid_windows(model: str, using: str) -> list[Window]:
    """The windows in which hybrid_search ranks its first `DEPTH` results; see there."""
    results = [max(10, SearchSettings.objects.using(using).get().candidate_pool // 4)]
    while results[-1] < DEPTH:
        results.append(4 * results[-1])
    with connections[using].cursor() as cursor:
        cursor.execute(
            """
            SELECT w.results,
                greatest(s.candidate_pool, 4 * w.results, vector_candidate_count(m, w.results))
            FROM unnest(%s::integer[]) AS w (results), search_settings AS s, embedding_models AS m
            WHERE m.name = %s
            ORDER BY 1
            """,
            [results, model],
        )
        return [Window(*row) for row in cursor.fetchall()]


def _evaluate(
    name: str,
    judgements: Judgements,
    vectors: Iterable[Sequence[float]],
    model: str,
    run: _Run,
) -> Evaluation:
    queries = judgements.queries
    weights = grid(run.vector_weight) if run.sweep else ()
    windows = hybrid_windows(model, run.using)
    pool = max((window.pool for window in windows), default=DEPTH)
    scores = {each: np.zeros((len(SEARCHES) + len(weights), len(queries))) for each in MEASURES}
    with progress(len(queries), "Searching", run.stream) as advance, metrics.suspended():
        for column, (query, vector) in enumerate(zip(queries, vectors, strict=True)):
            options: Options = {
                "user": query.user,
                "model": model,
                "rerank": False,
                "using": run.using,
            }
            rankings = _rankings(query, vector, run.vector_weight, {**options, "limit": DEPTH})
            if run.sweep:
                candidates = Candidates.fetch(query, vector, {**options, "limit": pool})
                rankings += [candidates.ranking(weight, windows) for weight in weights]
            for each, values in measure(rankings, [query.grades] * len(rankings)).items():
                scores[each][:, column] = values
            advance(1)

    swept = {each: values[len(SEARCHES) :] for each, values in scores.items()}
    with connections[run.using].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM search_documents")
        (documents,) = cursor.fetchone()
    return Evaluation(
        name=name,
        database=str(connections[run.using].settings_dict["NAME"]),
        documents=documents,
        model=model,
        queries=len(queries),
        judgements=judgements.count,
        left_out=judgements.left_out,
        vector_weight=run.vector_weight,
        means={
            name: {each: float(scores[each][row].mean()) for each in MEASURES}
            for row, name in enumerate(SEARCHES)
        },
        sweep=judge(weights, swept, run.vector_weight, run.seed) if run.sweep else None,
    )


def _rankings(
    query: JudgedQuery, vector: Sequence[float], vector_weight: float, options: Options
) -> list[list[Key]]:
    """What each of `SEARCHES` answers, as an application would ask it."""
    return [
        _distinct([_key(hit, query) for hit in hits])
        for hits in (
            similarity_search(vector, **options),
            keyword_search(query.text, **options),
            search(query.text, vector=vector, vector_weight=vector_weight, **options),
            search(
                query.text, vector=vector, vector_weight=vector_weight, fusion="rrf", **options
            ),
        )
    ]


def _key(hit: Hit, query: JudgedQuery) -> Key:
    """What a judgement on this hit would name: the chunk if that was judged, else its row."""
    chunk = Key(hit.source_table, hit.source_id, hit.chunk_index)
    return chunk if chunk in query.grades else chunk._replace(chunk_index=None)


def _distinct(keys: Sequence[Key]) -> list[Key]:
    return list(dict.fromkeys(keys[:DEPTH]))


def _query_vectors(embedder: Embedder, judgements: Judgements) -> Iterator[Sequence[float]]:
    return (embedder.embed_query(query.text) for query in judgements.queries)


# --- Arguments ----------------------------------------------------------------


def _vector_weight(weights: tuple[float, float] | None, using: str) -> float:
    if weights is None:
        site = RetrievalConfig.objects.using(using).filter(user=None, is_active=True).first()
        return DEFAULT_VECTOR_WEIGHT if site is None else site.vector_weight
    if not all(0 <= weight <= 1 for weight in weights) or abs(sum(weights) - 1) > 1e-6:
        raise InvalidWeights(
            f"Weights must each be in [0, 1] and sum to 1; they are {weights[0]} and "
            f"{weights[1]}.",
            "Nothing was evaluated.",
        )
    return weights[0]


def _check(judgements: Judgements, sweep: bool, seed: int) -> None:
    if seed < 0:
        raise InvalidArgument(f"The seed must be 0 or more, not {seed}.", "Nothing was evaluated.")
    if sweep and len(judgements.queries) < 2:
        raise InvalidArgument(
            "A sweep compares weights over several queries, and only one has a relevant document.",
            "Nothing was evaluated. Judge more queries, some fifty at least.",
        )
