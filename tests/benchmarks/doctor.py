"""search_doctor on 100,000 documents with vectors of 384 dimensions, indexed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from django.db.backends.base.base import BaseDatabaseWrapper

from cartrita_search.ingest import Document, finish_load, upsert_documents
from cartrita_search.ops.doctor import examine

from .database import raw_connection, truncate
from .report import Measurement, show

ROWS = 100_000
DIMENSIONS = 384
ROUNDS = 5
WORDS = 5_000


def run(connection: BaseDatabaseWrapper) -> bool:
    """Load made documents, build their index, and examine several times."""
    with raw_connection(connection) as pg:
        truncate(pg)
        _load()
        seconds = []
        for _ in range(ROUNDS):
            examined = examine()
            seconds.append(examined.seconds)
        if examined.skipped:
            raise RuntimeError(f"not all was looked at: {examined.skipped}")
        truncate(pg)
    return show(
        [
            Measurement("search_doctor, slowest of five, s", max(seconds), at_most=5),
            Measurement("search_doctor, median, s", float(np.median(seconds))),
        ]
    )


def _load() -> None:
    """Documents of made words, each with a vector near one of a thousand centres."""
    random = np.random.default_rng(1)
    centres = random.normal(size=(1000, DIMENSIONS)).astype(np.float32)

    def documents() -> Iterator[Document]:
        for number in range(ROWS):
            text = " ".join(f"word{n}" for n in random.zipf(1.3, 40) % WORDS)
            vector = centres[number % 1000] + random.normal(scale=0.3, size=DIMENSIONS).astype(
                np.float32
            )
            yield Document("made", str(number), f"Document {number}", text, vector)

    upsert_documents(documents(), model="made", index="keep")
    finish_load("made")
