"""Documents and their vectors into the database."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections, transaction
from psycopg.types.json import Jsonb

from .db import vector_literal
from .errors import InvalidArgument, search_errors

#: Documents of one transaction: a kill loses no more than these.
BATCH_SIZE = 500


@dataclass(frozen=True, slots=True)
class Document:
    """One chunk of one source row, with its vector."""

    source_table: str
    source_id: str
    title: str
    content: str
    embedding: Sequence[float]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    #: The owner; None is shared with everybody.
    user_id: int | None = None
    chunk_index: int = 0
    #: Text search configuration; None is the database's default.
    language: str | None = None
    tags: Sequence[str] = ()


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
            vector_literal(document.embedding),
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
