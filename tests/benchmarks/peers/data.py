"""The documents that stores are measured with."""

from __future__ import annotations

import numpy as np

from tests.collections_data import SHARED_DATA, document_ids, document_vectors, documents

from .store import Batch, Vector

#: Standard deviation of what is added to each of the 384 components of a unit vector.
NOISE = 0.02


def collection(name: str) -> Batch:
    """A corpus and its vectors, in the order of the vectors."""
    ids = document_ids(name)
    by_id = {document.id: document for document in documents(name)}
    return Batch(
        ids,
        [by_id[key].title for key in ids],
        [by_id[key].text for key in ids],
        document_vectors(name),
    )


def wordnet() -> tuple[Batch, Batch]:
    """WordNet: the senses to store, and those held out as queries."""
    truth = np.load(SHARED_DATA / "wordnet" / "ann_gt.npz")
    whole = collection("wordnet")
    stored, held_out = (_rows(whole, truth[key]) for key in ("base_rows", "query_rows"))
    # Glosses quote examples; as a query that would demand the very phrase.
    texts = [text.replace('"', "") for text in held_out.texts]
    return stored, held_out._replace(texts=texts)


def synthetic(origin: Batch, rows: int) -> Batch:
    """Documents like those of `origin`: a vector near one of its own, two halves of its texts.

    The same for the same arguments.
    """
    random = np.random.default_rng(20261124)
    first, second = random.integers(len(origin.ids), size=(2, rows))
    vectors = origin.vectors[first]
    vectors += random.standard_normal(vectors.shape, dtype=np.float32) * np.float32(NOISE)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Batch(
        [f"synthetic-{number}" for number in range(rows)],
        [origin.titles[row] for row in first],
        [
            f"{_half(origin.texts[a], 0)} {_half(origin.texts[b], 1)}"
            for a, b in zip(first, second, strict=True)
        ],
        vectors,
    )


def nearest(stored: Vector, queries: Vector, k: int) -> list[list[int]]:
    """Rows of `stored` by descending cosine to each query, exactly. Both hold unit vectors."""
    return [
        [int(row) for row in np.argsort(-(stored @ query), kind="stable")[:k]] for query in queries
    ]


def _rows(batch: Batch, rows: np.typing.NDArray[np.int64]) -> Batch:
    return Batch(
        [batch.ids[row] for row in rows],
        [batch.titles[row] for row in rows],
        [batch.texts[row] for row in rows],
        batch.vectors[rows],
    )


def _half(text: str, which: int) -> str:
    words = text.split()
    middle = (len(words) + 1) // 2
    return " ".join(words[middle:] if which else words[:middle])
