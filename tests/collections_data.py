"""The judged collections beside the project: read, put into a database, and scored.

Their folder is ``../shared/data`` from the project's root, or CARTRITA_SHARED_DATA.
They are read where they lie; its README says what each file holds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import numpy as np
import psycopg
import pytest
from django.conf import settings
from numpy.typing import NDArray
from pgvector.psycopg import register_vector
from psycopg import sql

from cartrita_search import evaluation

SHARED_DATA = Path(
    os.environ.get("CARTRITA_SHARED_DATA", settings.BASE_DIR.parent / "shared" / "data")
)

#: For tests that cannot do without. A folder that is there but incomplete fails them.
needs_shared_data = pytest.mark.skipif(
    not SHARED_DATA.is_dir(),
    reason="no judged collections: set CARTRITA_SHARED_DATA to their folder",
)

#: The model of all the vectors, and its dimension.
MODEL = "all-MiniLM-L6-v2"
DIMENSIONS = 384


class JudgedQuery(NamedTuple):
    """One query, its vector, and the grade of every document judged for it."""

    id: str
    text: str
    vector: NDArray[np.float32]
    grades: Mapping[str, int]


def documents(name: str) -> Iterator[evaluation.CorpusDocument]:
    """The corpus in its own order, which need not be that of `document_ids`."""
    return evaluation.read_corpus(SHARED_DATA / name)


@cache
def document_ids(name: str) -> tuple[str, ...]:
    """The ids of the corpus, in the order of the rows of `document_vectors`."""
    return tuple(_json(name, "corpus_ids.json"))


@cache
def document_vectors(name: str) -> NDArray[np.float32]:
    """Unit vectors of the corpus, a row a document; read once, so not to be written to."""
    quantized = SHARED_DATA / name / "corpus_emb_int8.npy"
    if quantized.exists():
        vectors: NDArray[np.float32] = np.load(quantized).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    else:
        read = evaluation.read_vectors(SHARED_DATA / name, "corpus")
        vectors = read.values.astype(np.float32)
    vectors.flags.writeable = False
    return vectors


def queries(name: str) -> list[JudgedQuery]:
    """The queries that anything was judged for, with their vectors and grades."""
    texts = evaluation.read_queries(SHARED_DATA / name)
    ids, vectors = evaluation.read_vectors(SHARED_DATA / name, "query")
    grades = qrels(name)
    return [
        JudgedQuery(query_id, texts[query_id], vector, grades[query_id])
        for query_id, vector in zip(ids, vectors.astype(np.float32), strict=True)
        if query_id in grades
    ]


def qrels(name: str) -> dict[str, dict[str, int]]:
    """Grades by query id and document id. Some grades are 0: judged, not relevant."""
    return evaluation.read_qrels(SHARED_DATA / name)


def load_collection(
    connection: psycopg.Connection, name: str, rows: Sequence[int] | None = None
) -> dict[str, UUID]:
    """Documents and vectors by COPY, then indexes and statistics, as after any bulk load.

    `rows` of `document_ids` are loaded, by default all, with the collection's name as
    source_table and its ids as source_id; returned is the id of each row of
    search_documents by source_id. The connection must be in autocommit mode, for
    VACUUM; pgvector's types are registered on it.
    """
    ids = document_ids(name)
    vectors = document_vectors(name)
    wanted = {ids[row]: row for row in (range(len(ids)) if rows is None else rows)}
    keys = {source_id: uuid4() for source_id in wanted}
    register_vector(connection)
    with connection.cursor() as cursor:
        with cursor.copy(
            "COPY search_documents (id, source_table, source_id, title, content) FROM STDIN"
        ) as copy:
            for document in documents(name):
                if document.id in wanted:
                    copy.write_row(
                        (keys[document.id], name, document.id, document.title, document.text)
                    )
        cursor.execute("SELECT register_embedding_model(%s, %s)", [MODEL, DIMENSIONS])
        with cursor.copy(
            "COPY embeddings (document_id, embedding_model, embedding) FROM STDIN (FORMAT binary)"
        ) as copy:
            copy.set_types(["uuid", "text", "vector"])
            for source_id, row in wanted.items():
                copy.write_row((keys[source_id], MODEL, vectors[row]))
        # This refreshes the keyword statistics as well.
        cursor.execute("SELECT rebuild_vector_indexes()")
        for table in ("search_documents", "embeddings", "keyword_statistics"):
            cursor.execute(sql.SQL("VACUUM (ANALYZE) {}").format(sql.Identifier(table)))
    return keys


def ndcg_at_10(grades: Mapping[str, int], found: Sequence[str]) -> float:
    """nDCG@10 of one query; 0 where nothing relevant is known."""
    return float(evaluation.measure([found], [grades])["nDCG@10"][0])


def _json(name: str, file: str) -> Any:
    return json.loads((SHARED_DATA / name / file).read_text(encoding="utf-8"))
