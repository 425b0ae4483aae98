"""Rows a second of bulk loads of WordNet senses: without an index, beside one, and rebuilt."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import psycopg
from django.db.backends.base.base import BaseDatabaseWrapper
from numpy.typing import NDArray
from psycopg.types.json import Jsonb

from cartrita_search.ingest import (
    Document,
    DocumentVector,
    IngestReport,
    finish_load,
    upsert_documents,
    upsert_embeddings,
)
from tests.collections_data import MODEL, document_ids, document_vectors, documents

from .database import raw_connection, truncate
from .report import Measurement, show

#: Rows of a load without an index; twice as many are put aside beside one and built in.
LARGE = 20_000
#: Rows that are written into an index in place, in each of the rounds.
SMALL = 2_000
ROUNDS = 3
#: Rows of a statement batch of the client to compare with.
CLIENT_BATCH = 500


class Sense(NamedTuple):
    """One sense, with its vector."""

    id: str
    title: str
    text: str
    vector: NDArray[np.float32]


def run(connection: BaseDatabaseWrapper) -> bool:
    """Load in each way, ours and an ordinary client's in turn where they are compared."""
    senses = _senses(3 * LARGE + ROUNDS * SMALL)
    old, small, new = (
        senses[:LARGE],
        [senses[LARGE + n * SMALL :][:SMALL] for n in range(ROUNDS)],
        senses[LARGE + ROUNDS * SMALL :],
    )
    rates: dict[str, float] = {}

    with raw_connection(connection) as pg:
        truncate(pg)
        rates["documents with vectors"] = _rate(
            old, lambda: upsert_documents(_documents(old), model=MODEL, index="keep")
        )
        rates["the same again, unchanged"] = _rate(
            old, lambda: upsert_documents(_documents(old), model=MODEL, index="keep")
        )
        pg.execute("TRUNCATE embeddings")
        rates["vectors of stored documents"] = _rate(
            old, lambda: upsert_embeddings(_vectors(old), model=MODEL, index="keep")
        )
        finish_load(MODEL)

        _make_plain_table(pg, old)
        beside: list[float] = []
        plain: list[float] = []
        for some in small:
            plain.append(_rate(some, partial(_insert_plainly, pg, some)))
            load = partial(upsert_documents, _documents(some), model=MODEL, index="keep")
            beside.append(_rate(some, load))
        pg.execute("DROP TABLE plain_client")
        rates["beside HNSW, an ordinary client"] = float(np.median(plain))
        rates["beside HNSW, kept"] = float(np.median(beside))
        rates["beside HNSW, put aside and rebuilt"] = _rate(
            new, lambda: upsert_documents(_documents(new), model=MODEL, index="rebuild")
        )
        truncate(pg)

    targets = {"documents with vectors": 10_400, "vectors of stored documents": 26_000}
    return show(
        [
            *(
                Measurement(f"{name}, rows/s", rate, at_least=targets.get(name))
                for name, rate in rates.items()
            ),
            Measurement(
                "kept / an ordinary client",
                rates["beside HNSW, kept"] / rates["beside HNSW, an ordinary client"],
                at_least=1.3,
            ),
            Measurement(
                "put aside and rebuilt / an ordinary client",
                rates["beside HNSW, put aside and rebuilt"]
                / rates["beside HNSW, an ordinary client"],
                at_least=2,
            ),
        ]
    )


def _senses(count: int) -> list[Sense]:
    vectors = dict(zip(document_ids("wordnet"), document_vectors("wordnet"), strict=True))
    return [
        Sense(document.id, document.title, document.text, vectors[document.id])
        for _, document in zip(range(count), documents("wordnet"), strict=False)
    ]


def _documents(senses: Iterable[Sense]) -> Iterator[Document]:
    return (
        Document("wordnet", sense.id, sense.title, sense.text, sense.vector)  # type: ignore[arg-type]
        for sense in senses
    )


def _vectors(senses: Iterable[Sense]) -> Iterator[DocumentVector]:
    return (
        DocumentVector("wordnet", sense.id, sense.vector)  # type: ignore[arg-type]
        for sense in senses
    )


def _rate(senses: Sequence[Sense], load: Callable[[], IngestReport | None]) -> float:
    started = time.perf_counter()
    report = load()
    seconds = time.perf_counter() - started
    if report is not None and (report.total != len(senses) or report.refused):
        raise RuntimeError(f"not all was stored: {report}")
    return len(senses) / seconds


def _make_plain_table(pg: psycopg.Connection, senses: Sequence[Sense]) -> None:
    """What a client without ours has: one table, vector(384), HNSW with m 16."""
    pg.execute(
        "CREATE TABLE plain_client "
        "(id text PRIMARY KEY, content text, metadata jsonb, embedding vector(384))"
    )
    with pg.cursor().copy("COPY plain_client FROM STDIN (FORMAT binary)") as copy:
        copy.set_types(["text", "text", "jsonb", "vector"])
        for sense in senses:
            copy.write_row((sense.id, sense.text, Jsonb({}), sense.vector))
    pg.execute(
        "CREATE INDEX ON plain_client USING hnsw (embedding vector_cosine_ops) "
        "WITH (m = 16, ef_construction = 64)"
    )


def _insert_plainly(pg: psycopg.Connection, senses: Sequence[Sense]) -> None:
    for start in range(0, len(senses), CLIENT_BATCH):
        with pg.transaction(), pg.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO plain_client VALUES (%s, %s, %s, %s) "
                "ON CONFLICT (id) DO UPDATE SET embedding = excluded.embedding",
                [
                    (sense.id, sense.text, Jsonb({}), sense.vector)
                    for sense in senses[start : start + CLIENT_BATCH]
                ],
            )
