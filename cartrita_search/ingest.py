"""Documents and their vectors into the database."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections, transaction
from psycopg.types.json import Jsonb

from .errors import InvalidArgument, search_errors

#: Rows of one batch, which is one transaction: a kill loses no more than these.
BATCH_SIZE = 5000

#: Refusals that a report keeps in full; beyond that they are only counted.
KEPT_REFUSALS = 100


@dataclass(frozen=True, slots=True)
class Document:
    """One chunk of one source row, with its vector if there is one already."""

    source_table: str
    source_id: str
    title: str = ""
    content: str = ""
    #: Floats of the model's dimension; None: the document awaits its vector.
    embedding: Sequence[float] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    #: The owner; None is shared with everybody.
    user_id: int | None = None
    chunk_index: int = 0
    #: Text search configuration; None is the database's default.
    language: str | None = None
    tags: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class DocumentVector:
    """A vector for a document that is stored already."""

    source_table: str
    source_id: str
    embedding: Sequence[float]
    chunk_index: int = 0
    #: `content_hash` of the text that was embedded; None: the document's present text.
    content_hash: str | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that was not stored, and why. The rest of its batch was."""

    source_table: str
    source_id: str
    chunk_index: int
    #: A `SearchError.code`: "SE001" for a wrong dimension, and so on.
    code: str
    message: str


@dataclass(slots=True)
class IngestReport:
    """What a bulk load did, counted by rows given: every one is in one of the four."""

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    refused: int = 0
    #: The first `KEPT_REFUSALS` refusals.
    refusals: list[Refusal] = field(default_factory=list)
    #: The report of the index build, where the load ended with one.
    index: str = ""

    @property
    def total(self) -> int:
        """All rows that were given."""
        return self.inserted + self.updated + self.unchanged + self.refused


def content_hash(title: str, content: str) -> str:
    """Hexadecimal SHA-256 of title, line feed, content: as document_content_hash in SQL."""
    return hashlib.sha256(f"{title}\n{content}".encode()).hexdigest()


def stored_hashes(
    source_table: str, model: str, *, using: str = DEFAULT_DB_ALIAS
) -> dict[tuple[str, int], str]:
    """Hash of the text embedded under `model`, by (source_id, chunk_index)."""
    with search_errors(), connections[using].cursor() as cursor:
        cursor.execute(
            "SELECT source_id, chunk_index, content_hash FROM embeddings "
            "WHERE source_table = %s AND embedding_model = %s",
            [source_table, model],
        )
        return {(source_id, chunk): text_hash for source_id, chunk, text_hash in cursor}


def upsert_documents(
    documents: Iterable[Document], model: str, *, using: str = DEFAULT_DB_ALIAS
) -> int:
    """Store documents and their vectors under `model`; returns how many were given.

    In batches, each one transaction. What is stored already and unchanged is not
    written again. Raises a `SearchError`; the batch it occurs in is undone, those
    before it stay.
    """
    count = 0
    rest = iter(documents)
    while batch := list(islice(rest, BATCH_SIZE)):
        rows = [_row(document, model) for document in batch]
        with (
            search_errors(),
            transaction.atomic(using=using),
            connections[using].cursor() as cursor,
        ):
            cursor.executemany(
                "SELECT upsert_embedding(%s, %s::text, %s::vector, %s, %s, %s, %s, %s, %s, %s, "
                "%s, %s::text[])",
                rows,
            )
        count += len(batch)
    return count


def _row(document: Document, model: str) -> tuple[Any, ...]:
    """The arguments of upsert_embedding, in order."""
    try:
        return (
            document.source_table,
            document.source_id,
            str(list(document.embedding or ())),
            model,
            content_hash(document.title, document.content),
            Jsonb(dict(document.metadata)),
            document.title,
            document.content,
            document.user_id,
            document.chunk_index,
            document.language,
            list(document.tags),
        )
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"{document.source_table}/{document.source_id}: the text holds a lone surrogate, "
            f"U+{ord(error.object[error.start]):04X}.",
            "Its batch was not stored. Decode the source with the right encoding.",
        ) from error
