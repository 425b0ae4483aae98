"""What a store has to offer in order to be measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

#: The same for every store: the HNSW graph, how wide a search of it is, the dimension.
HNSW_M = 16
HNSW_EF_CONSTRUCTION = 64
EF_SEARCH = 40
DIMENSIONS = 384

#: Shares of meaning and words in a hybrid search, where a store takes any.
WEIGHTS = (0.7, 0.3)

#: Candidates of each leg, where a store leaves them to its caller.
POOL = 50

Vector = NDArray[np.float32]


class Server(NamedTuple):
    """Where the database is: a socket's folder, and no password."""

    host: str
    port: str
    user: str
    dbname: str

    def url(self, scheme: str) -> str:
        """As SQLAlchemy and libpq take it."""
        where = f"host={quote(self.host, safe='')}&port={self.port}"
        return f"{scheme}://{self.user}@/{self.dbname}?{where}"


class Batch(NamedTuple):
    """Documents with their vectors, one a row."""

    ids: Sequence[str]
    titles: Sequence[str]
    texts: Sequence[str]
    vectors: Vector

    def part(self, start: int, stop: int) -> Batch:
        """The rows from `start` up to `stop`."""
        rows = slice(start, stop)
        return Batch(self.ids[rows], self.titles[rows], self.texts[rows], self.vectors[rows])

    def contents(self) -> list[str]:
        """What was embedded, for stores that have one text a document."""
        return [
            f"{title} {text}".strip() for title, text in zip(self.titles, self.texts, strict=True)
        ]


class Failure(NamedTuple):
    """Why a call gave no answer, in one line."""

    reason: str


class Store(ABC):
    """One table of documents and vectors, by one package's public API.

    It is used in a process that has nothing but this package, in this order:
    `create`, `prepare` and `load` for each batch, `build_index`, searches, `drop`.
    """

    #: By name, the kinds of hybrid search it has; True: a document with any of the
    #: query's words is found, False: only one with all of them.
    hybrids: ClassVar[Mapping[str, bool]] = {}

    #: Whether the package writes at all. If not, `load` does it by hand and is not measured.
    writes: ClassVar[bool] = True

    #: Whether `load_vectors` gives vectors to documents that are stored already.
    writes_vectors: ClassVar[bool] = False

    def __init__(self, server: Server) -> None:
        self.server = server

    @abstractmethod
    def create(self) -> None:
        """Make an empty table without a vector index."""

    @abstractmethod
    def prepare(self, batch: Batch) -> Any:
        """The batch as `load` takes it; not measured."""

    @abstractmethod
    def load(self, records: Any) -> None:
        """Write new documents and vectors by the package's own bulk API."""

    @abstractmethod
    def build_index(self) -> None:
        """Build the HNSW index, and whatever else the package's manual advises."""

    def prepare_vectors(self, batch: Batch) -> Any:
        """Store the documents, and return the vectors as `load_vectors` takes them."""
        raise NotImplementedError

    def load_vectors(self, records: Any) -> None:
        """Write the vectors of documents that are stored already."""
        raise NotImplementedError

    def query(self, vector: Vector) -> Any:
        """A query vector as `vector` and `hybrid` take it; not measured."""
        return vector.tolist()

    @abstractmethod
    def vector(self, query: Any, k: int) -> list[str]:
        """Ids of the nearest documents, the nearest first."""

    def hybrid(self, name: str, text: str, query: Any, k: int) -> list[str]:
        """Ids of the best documents by that kind of hybrid search."""
        raise NotImplementedError

    @abstractmethod
    def drop(self) -> None:
        """Remove the table."""
