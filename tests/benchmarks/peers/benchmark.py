"""This package beside others like it: the same vectors, the same PostgreSQL, one run."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psycopg
from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper

from cartrita_search.terminal import table
from tests.collections_data import ndcg_at_10, queries

from ..database import raw_connection, roomy
from ..report import Measurement, show
from .contestant import Contestant
from .data import collection, nearest, synthetic, wordnet
from .store import Batch, Server

FOLDERS = ("scifact", "cranfield", "vaswani")

#: Of the 1,000 held-out senses; those before warm caches and plans up.
QUERIES = 500
WARM_UP = 50

#: Rows by which writing is timed, without a vector index and with one, in turns of so many.
LOADED = 40_000
LOADED_INTO_INDEX = 4_000
TURNS = 4

K = 10

#: Name and module; all are installed by requirements-peers.txt.
PEERS = {
    "langchain-postgres": "langchain_postgres",
    "vecs": "vecs",
    "pgvector-haystack": "pgvector_haystack",
    "pghybrid": "pghybrid",
    "llama-index postgres": "llama_index_postgres",
}
OURS = "cartrita_search"
RAW = "prepared statement"
#: What its manual does not do: for information, beside its own call.
NARROW = "pghybrid, pool of 10"
PEERS_PYTHON = settings.BASE_DIR / ".bench-venv" / "bin" / "python"
OWN_PYTHON = Path(sys.executable)


def run(
    connection: BaseDatabaseWrapper, data: Sequence[str] = (), rows: int | None = None
) -> bool:
    """Measure; `data` names folders to judge quality by, `rows` limits WordNet's.

    False if a target was missed, or if any store failed: it is then in the table with
    its error, and was not measured further.
    """
    folders = data or FOLDERS
    roomy(connection)
    with ExitStack() as stack:
        # Theirs have a database of their own, so that no statement meets another's tables.
        here = stack.enter_context(raw_connection(connection))
        here.execute("CREATE DATABASE peers")
        there = stack.enter_context(
            psycopg.connect(here.info.dsn, dbname="peers", autocommit=True)
        )
        there.execute("CREATE EXTENSION vector")
        ours, theirs = (
            Server(pg.info.host, str(pg.info.port), pg.info.user, pg.info.dbname)
            for pg in (here, there)
        )
        contestants = [
            stack.enter_context(contestant)
            for contestant in (
                Contestant(OURS, "cartrita", OWN_PYTHON, ours),
                # After ours, whose table it reads.
                Contestant(RAW, "raw", OWN_PYTHON, ours),
                *(Contestant(name, PEERS[name], PEERS_PYTHON, theirs) for name in PEERS),
                # After pghybrid, whose table it reads.
                Contestant(NARROW, "pghybrid_narrow", PEERS_PYTHON, theirs),
            )
        ]
        for folder in folders:
            _quality(contestants, folder, [here, there])
        _wordnet(contestants, rows, [here, there])
    print(_table(contestants, folders))
    failures = [f"{c.name}: {c.failure}" for c in contestants if c.failure]
    print(*failures, "", sep="\n")
    met = show(list(_targets(contestants, folders)))
    return met and not failures


def _settle(databases: Sequence[psycopg.Connection]) -> None:
    for pg in databases:
        pg.execute("VACUUM (ANALYZE)")


def _quality(
    contestants: Sequence[Contestant], folder: str, databases: Sequence[psycopg.Connection]
) -> None:
    """nDCG@10 of every kind of hybrid search on one judged collection."""
    corpus, judged = collection(folder), queries(folder)
    print(f"quality: {Path(folder).name}", flush=True)
    for contestant in contestants:
        if contestant.failure or not contestant.hybrids:
            continue
        with contestant.surviving():
            contestant.call("create")
            contestant.load(corpus)
            contestant.call("build_index")
            _settle(databases)
            for name in contestant.hybrids:
                contestant.quality[name, folder] = float(
                    np.mean(
                        [
                            ndcg_at_10(
                                query.grades,
                                contestant.call("hybrid", name, query.text, query.vector, K)[1],
                            )
                            for query in judged
                        ]
                    )
                )
            contestant.call("drop")


def _wordnet(
    contestants: Sequence[Contestant], rows: int | None, databases: Sequence[psycopg.Connection]
) -> None:
    """Loading, latency and recall."""
    stored, held_out = wordnet()
    stored = stored.part(0, rows or len(stored.ids))
    end = len(stored.ids)
    timed = min(LOADED, end // 2)
    first, second = stored.part(0, timed), stored.part(timed, 2 * timed)
    for contestant in contestants:
        if not contestant.failure:
            with contestant.surviving():
                contestant.call("create")
    _write(contestants, "documents", "load", first)
    _write([c for c in contestants if c.writes_vectors], "vectors", "load_vectors", second)
    for contestant in contestants:
        if contestant.failure:
            continue
        print(f"loading the rest: {contestant.name}", flush=True)
        with contestant.surviving():
            done = timed * (2 if contestant.writes_vectors else 1)
            contestant.load(stored.part(done, end))
            contestant.call("build_index")
    _settle(databases)
    _latency(contestants, stored, held_out.part(0, WARM_UP + QUERIES))
    _write(contestants, "indexed", "load", synthetic(stored, LOADED_INTO_INDEX))


def _write(contestants: Sequence[Contestant], kind: str, method: str, batch: Batch) -> None:
    """A part of the batch by each in turn, until all is written."""
    print(f"writing: {kind}", flush=True)
    rows = -(-len(batch.ids) // TURNS)
    for start in range(0, len(batch.ids), rows):
        for contestant in contestants:
            if not contestant.failure:
                with contestant.surviving():
                    contestant.write(kind, method, batch.part(start, start + rows))


def _latency(contestants: Sequence[Contestant], stored: Batch, asked: Batch) -> None:
    """Each query by each kind of search in turn, so that noise meets all of them.

    The turn is drawn anew for each query: who comes second finds caches warm.
    """
    print("latency", flush=True)
    order = np.random.default_rng(1)
    turns = [(c, kind) for c in contestants for kind in ("", *c.hybrids)]
    exact = nearest(stored.vectors, asked.vectors, K)
    overlap: dict[str, list[float]] = {}
    for number, text in enumerate(asked.contents()):
        for turn in order.permutation(len(turns)):
            contestant, kind = turns[turn]
            if contestant.failure:
                continue
            vector = asked.vectors[number]
            with contestant.surviving():
                if kind:
                    seconds, _ = contestant.call("hybrid", kind, text, vector, K)
                else:
                    seconds, found = contestant.call("vector", vector, K)
                    best = {stored.ids[row] for row in exact[number]}
                    overlap.setdefault(contestant.name, []).append(
                        len(best.intersection(found)) / len(best)
                    )
                if number >= WARM_UP:
                    contestant.seconds.setdefault(kind, []).append(seconds)
    for contestant in contestants:
        if contestant.name in overlap:
            contestant.recall = float(np.mean(overlap[contestant.name]))


def _milliseconds(contestant: Contestant, kind: str, quantile: float) -> float | None:
    """The quantile of one kind of search, None if it was not measured."""
    times = contestant.seconds.get(kind)
    return float(np.quantile(times, quantile)) * 1000 if times else None


def _table(contestants: Sequence[Contestant], folders: Sequence[str]) -> str:
    """One row for each kind of hybrid search; the rest is in the first row of a store."""
    headers = [
        "",
        "hybrid search",
        "match",
        *(Path(folder).name for folder in folders),
        "p50",
        "p95",
        "vector p50",
        "p95",
        "recall@10",
        "rows/s",
        "vectors/s",
        "indexed/s",
    ]
    lines: list[list[object]] = []
    for c in contestants:
        for position, kind in enumerate(c.hybrids or ([] if c.failure else [""])):
            once: list[object] = [
                _milliseconds(c, "", 0.5),
                _milliseconds(c, "", 0.95),
                c.recall,
                *(
                    round(rate) if c.writes and (rate := c.rate(written)) else None
                    for written in ("documents", "vectors", "indexed")
                ),
            ]
            lines.append(
                [
                    c.name,
                    kind or None,
                    ("any" if c.hybrids[kind] else "all") if kind else None,
                    *(c.quality.get((kind, folder)) for folder in folders),
                    *(_milliseconds(c, kind, q) if kind else None for q in (0.5, 0.95)),
                    *(once if position == 0 else [""] * len(once)),
                ]
            )
        if c.failure:
            lines.append([c.name, f"FAILED {c.failure}", *[""] * (len(headers) - 2)])
    return table(headers, lines, right=range(3, len(headers)), width=160)


def _targets(contestants: Sequence[Contestant], folders: Sequence[str]) -> Iterator[Measurement]:
    """Ours against the best of the others in each column."""
    by_name = {contestant.name: contestant for contestant in contestants}
    ours, raw, narrow = (by_name.pop(name) for name in (OURS, RAW, NARROW))
    peers = list(by_name.values())
    (kind,) = ours.hybrids or [""]

    for folder in folders:
        theirs = {
            f"{peer.name}, {k}": score
            for peer in peers
            for (k, of), score in peer.quality.items()
            if of == folder
        }
        best, score = _best(theirs, max)
        yield Measurement(
            f"{Path(folder).name}: nDCG@10, above {best}",
            ours.quality.get((kind, folder), math.nan),
            at_least=math.nextafter(score, math.inf),
        )

    vector, hybrid = (_milliseconds(ours, k, 0.5) or math.nan for k in ("", kind))
    yield Measurement(
        "vector p50 / prepared statement",
        vector / (_milliseconds(raw, "", 0.5) or math.nan),
        at_most=1.4,
    )
    best, fastest = _best({peer.name: _milliseconds(peer, "", 0.5) for peer in peers}, min)
    yield Measurement(f"vector p50 / {best}", vector / fastest, at_most=0.8)
    yield Measurement(
        f"vector p50 / {NARROW}", vector / (_milliseconds(narrow, "", 0.5) or math.nan)
    )
    yield Measurement("vector recall@10", ours.recall or math.nan, at_least=0.95)
    any_term = {
        f"{peer.name}, {k}": _milliseconds(peer, k, 0.5)
        for peer in peers
        for k, matches_any in peer.hybrids.items()
        if matches_any
    }
    best, fastest = _best(any_term, min)
    yield Measurement(f"hybrid p50 / {best}", hybrid / fastest, at_most=0.7)
    yield Measurement(
        "hybrid p95 / its p50", (_milliseconds(ours, kind, 0.95) or math.nan) / hybrid, at_most=2.5
    )

    # A peer has one way to write, so its rate stands against both of ours.
    for what, rate, against, times in (
        ("vectors of stored documents", "vectors", "documents", 10),
        ("documents and vectors", "documents", "documents", 4),
        ("the same with the index in place", "indexed", "indexed", 1.3),
    ):
        best, fastest = _best(
            {peer.name: peer.rate(against) for peer in peers if peer.writes}, max
        )
        yield Measurement(
            f"{what}, rows/s / {best}",
            (ours.rate(rate) or math.nan) / fastest,
            at_least=times,
        )


def _best(
    figures: Mapping[str, float | None], choose: Callable[[Iterable[float]], float]
) -> tuple[str, float]:
    """Whose the best figure is, and the figure; NaN, which meets no target, if there is none."""
    known = {figure: name for name, figure in figures.items() if figure is not None}
    if not known:
        return "any peer", math.nan
    figure = choose(known)
    return known[figure], figure
