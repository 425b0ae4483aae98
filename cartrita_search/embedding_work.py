"""Embedding what is missing or stale: work that any number of workers share.

A batch is one transaction: claim documents (their rows locked, those that others
hold skipped), call the provider, store the vectors, commit. A worker that is killed
loses that transaction and nothing else. While the provider is waited for (with the
retries that it makes itself), whoever wants to change one of the batch's documents
waits too; the longer pauses for an overloaded one are made between transactions.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import cast
from uuid import UUID

from django.db import DEFAULT_DB_ALIAS, connections, transaction
from tenacity import (
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_when_event_set,
    wait_random_exponential,
)

from .db import MAXIMUM_DIMENSIONS
from .embedders import Embedder, Vector, get_embedder, unit_vectors
from .errors import (
    DimensionMismatch,
    EmbedderOverloaded,
    EmbedderUnavailable,
    EmbeddingRefused,
    InvalidArgument,
    search_errors,
)

#: Documents of a batch, unless the embedder likes more. A commit costs milliseconds;
#: a model on the CPU takes a second for these, which is what a kill loses.
BATCH_SIZE = 64

#: How often a batch is tried with an overloaded provider, after the provider's own
#: retries, and the pauses between (seconds, random up to a doubling bound): some five
#: minutes in all.
ATTEMPTS = 10
BACKOFF = wait_random_exponential(multiplier=1, max=60)

#: A batch of so many texts of which the provider refuses every one: it is not the texts.
SUSPICIOUS_REFUSALS = 8

#: What is stored of a provider's message.
MESSAGE_LENGTH = 1000


@dataclass(frozen=True, slots=True)
class SourceWork:
    """What a source has to be embedded; what is set aside is not counted as missing or stale."""

    source_table: str
    documents: int
    missing: int
    stale: int
    set_aside: int


@dataclass(frozen=True, slots=True)
class SyncOutcome:
    """What `sync_embeddings` did, and what it left."""

    model: str
    #: Vectors stored, and documents set aside, by this process.
    embedded: int
    refused: int
    #: Afterwards, by whichever process: missing or stale, and set aside with an error.
    remaining: int
    set_aside: int
    seconds: float
    #: Documents embedded a second.
    rate: float


def embedding_text(title: str, content: str) -> str:
    """What of a document is embedded: its title and its content, a line each."""
    return "\n".join(part for part in (title.strip(), content.strip()) if part)


def embedder_of(model: str | None = None) -> Embedder:
    """The configured embedder, which must be that of ``model`` (None: whichever it is).

    Raises `EmbedderUnavailable`, and `InvalidArgument` where it is another model's.
    """
    embedder = get_embedder()
    if model is not None and model != embedder.name:
        raise InvalidArgument(
            f'The configured embedder is that of model "{embedder.name}", not of "{model}".',
            "Nothing was changed. Set EMBEDDER and EMBEDDER_OPTIONS to that model's embedder, or "
            "leave the model out.",
        )
    return embedder


def embedding_work(
    model: str, source: str | None = None, *, using: str = DEFAULT_DB_ALIAS
) -> list[SourceWork]:
    """What has to be embedded under ``model``, by source table. Reads whole tables.

    Raises `InvalidArgument` if ``source`` has no documents.
    """
    with search_errors(), connections[using].cursor() as cursor:
        cursor.execute(
            "SELECT source_table, documents, missing, stale, set_aside "
            "FROM count_embedding_work(%s, %s)",
            [model, source],
        )
        work = [SourceWork(*row) for row in cursor.fetchall()]
    if source is not None and not work:
        raise InvalidArgument(
            f'There are no documents of source "{source}".',
            "Nothing was changed. The admin's page of documents lists the sources.",
        )
    return work


def sync_embeddings(
    *,
    model: str | None = None,
    source: str | None = None,
    workers: int = 1,
    batch_size: int | None = None,
    retry_refused: bool = False,
    stop: threading.Event | None = None,
    progress: Callable[[int], object] | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> SyncOutcome:
    """Embed every document (of ``source``) that has no vector, or one of an older text.

    The model is the configured embedder's; ``model`` may say so. ``workers`` threads,
    each with a connection of its own, take ``batch_size`` documents at a time (None:
    the embedder's batch size, at least `BATCH_SIZE`) until they find no more. Other
    processes may do the same: no document is embedded by two.

    A text that the provider refuses is set aside in ``embedding_refusals`` until it
    changes; ``retry_refused`` takes those up again once. An overloaded provider is
    tried `ATTEMPTS` times. ``progress(n)`` is called with the documents of each
    finished batch, by one thread at a time. Setting ``stop`` lets the workers finish
    the batch in hand, and no other; it is set here when one of them fails.

    Raises `EmbedderUnavailable`, `EmbedderOverloaded`, `DimensionMismatch`,
    `InvalidArgument`; what was stored before stays.
    """
    for name, value in (("workers", workers), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise InvalidArgument(f"{name} must be at least 1, not {value}.")
    started = time.monotonic()
    embedder = embedder_of(model)
    if source is not None:
        embedding_work(embedder.name, source, using=using)  # refuses a source without documents
    now = _register(embedder, using)
    run = _Run(
        embedder=embedder,
        source=source,
        batch_size=batch_size or max(embedder.batch_size, BATCH_SIZE),
        retry_before=now if retry_refused else None,
        stop=stop or threading.Event(),
        progress=progress or (lambda count: None),
        using=using,
    )
    # Daemons: a second Ctrl-C leaves them where they are, and the server undoes their batch.
    threads = [threading.Thread(target=run.work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if run.error is not None:
        raise run.error
    seconds = time.monotonic() - started
    work = embedding_work(embedder.name, source, using=using)
    return SyncOutcome(
        model=embedder.name,
        embedded=run.embedded,
        refused=run.refused,
        remaining=sum(each.missing + each.stale for each in work),
        set_aside=sum(each.set_aside for each in work),
        seconds=round(seconds, 1),
        rate=round(run.embedded / seconds, 1),
    )


def _register(embedder: Embedder, using: str) -> datetime:
    """Make sure that the vectors will fit the model; returns the database's time."""
    if not 1 <= embedder.dimensions <= MAXIMUM_DIMENSIONS:
        raise DimensionMismatch(
            f"The embedder makes vectors of {embedder.dimensions} dimensions; pgvector holds 1 to "
            f"{MAXIMUM_DIMENSIONS}.",
            "Nothing was changed. Give other dimensions in EMBEDDER_OPTIONS.",
        )
    with search_errors(), connections[using].cursor() as cursor:
        cursor.execute(
            "SELECT dimensions, clock_timestamp() FROM register_embedding_model(%s, %s)",
            [embedder.name, embedder.dimensions],
        )
        dimensions, now = cursor.fetchone()
    if dimensions != embedder.dimensions:
        raise DimensionMismatch(
            f"The embedder makes vectors of {embedder.dimensions} dimensions, but model "
            f'"{embedder.name}" has {dimensions} here.',
            "Nothing was changed. Give the embedder another name, or other dimensions, in "
            "EMBEDDER_OPTIONS.",
        )
    return cast(datetime, now)


def _storable(message: str) -> str:
    """What of a provider's words PostgreSQL can hold: no lone surrogate, no NUL."""
    return message[:MESSAGE_LENGTH].encode(errors="replace").decode().replace("\0", " ")


@dataclass(frozen=True, slots=True)
class _Claim:
    """A document of the batch in hand."""

    document_id: UUID
    title: str
    content: str
    content_hash: str

    @property
    def text(self) -> str:
        return embedding_text(self.title, self.content)


@dataclass(slots=True)
class _Run:
    """What the threads of one `sync_embeddings` share."""

    embedder: Embedder
    source: str | None
    batch_size: int
    retry_before: datetime | None
    stop: threading.Event
    progress: Callable[[int], object]
    using: str
    embedded: int = 0
    refused: int = 0
    error: Exception | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def work(self) -> None:
        """Walk through the documents until a walk finds nothing; never raises."""
        try:
            # Once more from the beginning: what others had in hand may have come free.
            while self._walk():
                pass
        except Exception as error:  # noqa: BLE001 - raised again by the thread that waits
            with self.lock:
                # After a stop the batch in hand is merely abandoned.
                if not self.stop.is_set():
                    self.error = error
                    self.stop.set()
        finally:
            connections[self.using].close()

    def _walk(self) -> bool:
        """Batch after batch in the order of ids; whether there was any."""
        last: UUID | None = None
        while not self.stop.is_set():
            done = self._batch(last)
            if done is None:
                return last is not None
            last = done
        return False

    def _batch(self, after: UUID | None) -> UUID | None:
        """One batch, tried again while the provider is overloaded; its last id."""
        for attempt in Retrying(
            retry=retry_if_exception_type(EmbedderOverloaded),
            wait=BACKOFF,
            stop=stop_after_attempt(ATTEMPTS) | stop_when_event_set(self.stop),
            sleep=sleep_using_event(self.stop),
            reraise=True,
        ):
            with attempt:
                return self._transaction(after)
        raise AssertionError("Retrying returns or raises")

    def _transaction(self, after: UUID | None) -> UUID | None:
        model = self.embedder.name
        with (
            search_errors(),
            transaction.atomic(using=self.using),
            connections[self.using].cursor() as cursor,
        ):
            cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            cursor.execute(
                "SELECT document_id, title, content, content_hash "
                "FROM claim_embedding_work(%s, %s, %s, %s, %s)",
                [model, self.batch_size, after, self.source, self.retry_before],
            )
            claims = [_Claim(*row) for row in cursor.fetchall()]
            if not claims:
                return None
            vectors, refusals = self._embed(claims)
            cursor.execute(
                """
                INSERT INTO embeddings (document_id, embedding_model, embedding, content_hash)
                SELECT v.document_id, %s, v.embedding::vector, v.content_hash
                FROM unnest(%s::uuid[], %s::text[], %s::text[])
                    AS v (document_id, embedding, content_hash)
                ON CONFLICT (document_id, embedding_model) DO UPDATE
                SET embedding = excluded.embedding, content_hash = excluded.content_hash
                """,
                [
                    model,
                    [claim.document_id for claim, _ in vectors],
                    [str(vector) for _, vector in vectors],  # pgvector's text form
                    [claim.content_hash for claim, _ in vectors],
                ],
            )
            cursor.execute(
                "DELETE FROM embedding_refusals "
                "WHERE embedding_model = %s AND document_id = ANY (%s::uuid[])",
                [model, [claim.document_id for claim in claims]],
            )
            cursor.execute(
                """
                INSERT INTO embedding_refusals
                    (document_id, embedding_model, content_hash, error_code, message, worker)
                SELECT r.document_id, %s, r.content_hash, %s, r.message, %s
                FROM unnest(%s::uuid[], %s::text[], %s::text[])
                    AS r (document_id, content_hash, message)
                """,
                [
                    model,
                    EmbeddingRefused.code,
                    f"{socket.gethostname()}:{os.getpid()}",
                    [claim.document_id for claim, _ in refusals],
                    [claim.content_hash for claim, _ in refusals],
                    [_storable(str(error)) for _, error in refusals],
                ],
            )
        with self.lock:
            self.embedded += len(vectors)
            self.refused += len(refusals)
            self.progress(len(claims))
        return claims[-1].document_id

    def _embed(
        self, claims: Sequence[_Claim]
    ) -> tuple[list[tuple[_Claim, Vector]], list[tuple[_Claim, EmbeddingRefused]]]:
        """The claims with their vectors, and those that are refused with the reason."""
        vectors: list[tuple[_Claim, Vector]] = []
        refusals: list[tuple[_Claim, EmbeddingRefused]] = []
        for claim, answer in self._answers([claim for claim in claims if claim.text]):
            if isinstance(answer, EmbeddingRefused):
                refusals.append((claim, answer))
            else:
                vectors.append((claim, answer))
        if len(refusals) >= SUSPICIOUS_REFUSALS and not vectors:
            raise EmbedderUnavailable(
                f"The provider refuses all {len(refusals)} texts of a batch: {refusals[0][1]}",
                "None of them was set aside. If it really is the texts, a --batch-size below "
                f"{SUSPICIOUS_REFUSALS} sets them aside.",
            )
        nothing = EmbeddingRefused("The document has no text.")
        return vectors, refusals + [(claim, nothing) for claim in claims if not claim.text]

    def _answers(
        self, claims: Sequence[_Claim]
    ) -> Iterator[tuple[_Claim, Vector | EmbeddingRefused]]:
        """What the provider says to each: a refused batch is halved until one text is left."""
        try:
            found = self.embedder.embed_documents([claim.text for claim in claims])
            units = unit_vectors(found, len(claims), self.embedder.dimensions)
        except EmbeddingRefused as error:
            if len(claims) == 1:
                yield claims[0], error
            else:
                middle = len(claims) // 2
                yield from self._answers(claims[:middle])
                yield from self._answers(claims[middle:])
        else:
            yield from zip(claims, units, strict=True)
