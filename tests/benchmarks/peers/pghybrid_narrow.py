"""pghybrid's vector search, told by hand that its pool need not be larger than the answer."""

from __future__ import annotations

from typing import Any, ClassVar

from .pghybrid import Pghybrid
from .store import Batch


class PghybridNarrow(Pghybrid):
    """Reads what `Pghybrid` has written, by the same index."""

    hybrids: ClassVar = {}

    def create(self) -> None:
        self.connect()

    def prepare(self, batch: Batch) -> Any:
        return None

    def load(self, records: Any) -> None:
        pass

    def build_index(self) -> None:
        pass

    def vector(self, query: Any, k: int) -> list[str]:
        found = self.search.search(embedding=query, limit=k, candidate_limit=k)
        return [hit.id for hit in found]

    def drop(self) -> None:
        self.pg.close()


STORE = PghybridNarrow
