"""Documents and their vectors into the database, in bulk, and out of it again.

A batch is checked row by row here, copied into a temporary table in PostgreSQL's
binary format, and merged by one call of merge_ingest_batch(): one transaction. Of a
large batch two connections take half each: the server's work is most of it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from django.db import DEFAULT_DB_ALIAS, connections, transaction

from . import replicas
from .errors import (
    DimensionMismatch,
    InvalidArgument,
    SearchError,
    ZeroVector,
    search_errors,
)

if TYPE_CHECKING:
    from django.db.backends.utils import CursorWrapper

#: Rows of one batch: a kill loses no more than these.
BATCH_SIZE = 5000

#: Characters and bytes at which a batch is full with fewer rows.
BATCH_BYTES = 32 << 20

#: Rows of a batch that are worth a second connection beside a vector index, where each
#: takes ten times as long; without one ten times as many.
SIDE_BY_SIDE = 100

#: New vectors that an index in place takes in sooner than it is rebuilt.
FEW = 1000

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


OnError = Literal["report", "raise"]
Index = Literal["auto", "keep", "rebuild"]


class Finish(Protocol):
    """What a large load ends with: `finish_load`, or another way to do the same."""

    def __call__(self, model: str | None = None, *, using: str) -> str: ...


def upsert_documents(
    documents: Iterable[Document],
    *,
    model: str | None = None,
    on_error: OnError = "report",
    index: Index = "auto",
    expected: int | None = None,
    replace_owner: bool = False,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int], object] | None = None,
    finish: Finish | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> IngestReport:
    """Store documents, and the vectors they bring, under `model` (None: the default model).

    Any iterable; no more than a batch of it is held in memory. Each batch is one
    transaction (a savepoint within one of the caller's), or for more than a thousand
    rows, beside an index in place a hundred, two on two connections; with
    ``on_error="raise"`` always one.

    What is stored already and unchanged is not written. A new text makes the vectors
    of the old one stale, under every model. Of several documents with one key in a
    batch the last is stored, and the others count as unchanged. A document without a
    language keeps the one that is stored, and one without an owner its owner: only
    ``replace_owner`` makes it shared, for sources that know the owner of every row.

    A row that cannot be stored is left out and reported with its key; with
    ``on_error="raise"`` it raises its `SearchError`, its batch is undone, and those
    before it stay.

    ``index`` says what becomes of the model's vector index, which holds every writer
    to about a thousand rows a second. "keep" writes beside it. "rebuild" puts new
    vectors aside, where vector searches do not find them yet, and ends with
    `finish_load`, which makes all of them visible at once; a killed load is made
    visible by the next rebuild. "auto" does so where an index is in place, the load is
    large beside it (more than 1000 rows and a third of it; where neither ``expected``
    nor ``len()`` tells, from a tenth on) and the role owns the tables; where none is in
    place, a load of more than 1000 new vectors outside a transaction ends with
    `finish_load` if the plan is to have one.

    ``progress`` is called with the number of rows of each finished batch. After a
    large load that was not put aside, call `finish_load`. ``finish`` stands in for it where
    the load ends with it: `ops.vector_indexes.finish_load` lets writers go on meanwhile.
    """
    load = _Load(
        model=model,
        on_error=on_error,
        index=index,
        batch_size=batch_size,
        progress=progress,
        using=using,
        replace_owner=replace_owner,
        finish=finish or finish_load,
    )
    return load.run(documents, load.document_row, expected)


def upsert_embeddings(
    vectors: Iterable[DocumentVector],
    *,
    model: str,
    on_error: OnError = "report",
    index: Index = "auto",
    expected: int | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int], object] | None = None,
    finish: Finish | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> IngestReport:
    """Store vectors under `model` for documents that are stored already.

    As `upsert_documents` in everything else; a vector without its document is refused
    (SE008). The counts are of vectors.
    """
    load = _Load(
        model=model,
        on_error=on_error,
        index=index,
        batch_size=batch_size,
        progress=progress,
        using=using,
        finish=finish or finish_load,
    )
    return load.run(vectors, load.vector_row, expected)


def finish_load(model: str | None = None, *, using: str = DEFAULT_DB_ALIAS) -> str:
    """What a large load should end with; takes about as long as the load itself.

    Rebuilds the index of `model`, which makes vectors that were put aside visible, or
    without a model only refreshes the keyword statistics; then vacuums (outside of a
    transaction). Searches go on, other writers wait: beside these take
    `ops.vector_indexes.finish_load`. Returns the report of the rebuild. Takes the owner of
    the tables.
    """
    report = ""
    with search_errors(), connections[using].cursor() as cursor:
        if model is None:
            cursor.execute("SELECT refresh_keyword_statistics()")
        else:
            cursor.execute("SELECT rebuild_vector_indexes(%s)", [model])
            (report,) = cursor.fetchone()
        # Last, because refreshing the statistics of a first load rewrites every row.
        if not connections[using].in_atomic_block:
            cursor.execute("VACUUM (ANALYZE) search_documents, embeddings")
    replicas.wrote(using)
    return report


class MergedBatch(NamedTuple):
    """What `merge_batch` did, counted by rows; see merge_ingest_batch() in SQL."""

    inserted: int
    updated: int
    new_vectors: int
    #: Positions of vectors without a document, which were left out.
    missing: list[int]


def merge_batch(
    cursor: CursorWrapper,
    *,
    model: str | None,
    dimensions: int | None,
    deferred: bool,
    replace_owner: bool,
) -> MergedBatch:
    """Bring documents and vectors up to the rows of the table that `STAGING` made, and drop it.

    The rows are the caller's to have checked; each key is there once.
    """
    cursor.execute(
        "SELECT * FROM merge_ingest_batch(%s, %s, %s, %s)",
        [model, dimensions, deferred, replace_owner],
    )
    merged = MergedBatch(*cursor.fetchone())
    # Within a transaction of the caller's it would outlive the batch.
    cursor.execute("DROP TABLE pg_temp.ingest_batch")
    return merged


def delete_source(source_table: str, *, using: str = DEFAULT_DB_ALIAS) -> int:
    """Delete a source's documents with their vectors; returns how many documents."""
    with search_errors(), connections[using].cursor() as cursor:
        cursor.execute("DELETE FROM search_documents WHERE source_table = %s", [source_table])
        deleted = int(cursor.rowcount)
    replicas.wrote(using)
    return deleted


def prune_source(source_table: str, keep: Iterable[str], *, using: str = DEFAULT_DB_ALIAS) -> int:
    """Delete the source's documents whose source_id is not in `keep`; returns how many.

    Any iterable, of which a batch of ids is held in memory; it may read from this very
    database. An empty one deletes all. Where `keep` raises nothing is deleted.
    """
    connection = connections[using]
    with search_errors(), transaction.atomic(using=using), connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE ingest_keep (source_id text) ON COMMIT DROP")
        ids = iter(keep)
        # Asked for between COPYs: while one is open its connection does nothing else.
        while batch := [_text(source_id, "source_id") for source_id in islice(ids, BATCH_SIZE)]:
            with (
                connection.wrap_database_errors,
                cursor.copy("COPY pg_temp.ingest_keep FROM STDIN (FORMAT binary)") as copy,
            ):
                copy.set_types(["text"])
                for source_id in batch:
                    copy.write_row((source_id,))
        cursor.execute("ANALYZE pg_temp.ingest_keep")
        cursor.execute(
            "DELETE FROM search_documents AS d WHERE d.source_table = %s AND NOT EXISTS "
            "(SELECT FROM pg_temp.ingest_keep AS k WHERE k.source_id = d.source_id)",
            [source_table],
        )
        deleted = int(cursor.rowcount)
        cursor.execute("DROP TABLE pg_temp.ingest_keep")
    replicas.wrote(using)
    return deleted


Item = TypeVar("Item", Document, DocumentVector)

_Key = tuple[str, str, int]

#: user_id, title, content, tags, language, metadata, content_hash, embedding; those
#: of type bytes are in PostgreSQL's binary form already.
_Row = tuple[
    int | None, str | None, str | None, bytes | None, str | None, bytes | None, str | None,
    bytes | None,
]  # fmt: skip

#: Rows inserted, rows updated, vectors inserted, keys of vectors without a document.
_Merged = tuple[int, int, int, list[_Key]]

_NOT_FINITE = "The vector is empty, or holds NaN or infinity."
_NO_DOCUMENT = InvalidArgument("There is no such document.")

#: Makes what `merge_batch` takes up, to be filled in between, in the batch's transaction.
STAGING = """
    CREATE TEMPORARY TABLE ingest_batch (
        position integer, source_table text, source_id text, chunk_index integer,
        user_id bigint, title text, content text, tags text[], language text,
        metadata jsonb, content_hash text, embedding vector, created_at timestamptz
    ) ON COMMIT DROP
"""
_COPY = """
    COPY pg_temp.ingest_batch (
        position, source_table, source_id, chunk_index, user_id, title, content, tags,
        language, metadata, content_hash, embedding
    ) FROM STDIN (FORMAT binary)
"""
#: Of these columns; "bytea" is what comes in binary form already.
_TYPES = ("int4", "text", "text", "int4", "int8", "text", "text", *["bytea", "text"] * 2, "bytea")

_NO_TAGS = struct.pack(">iii", 0, 0, 25)  # an array of no dimension, of type text
_NO_METADATA = b"\x01{}"  # jsonb, version 1

#: A NUL in JSON's own notation; "\\u0000" is a backslash and five characters.
_JSON_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

_MODEL = """
    SELECT m.name, m.dimensions, m.index_method <> 'exact', coalesce(m.indexed_rows, 0)
    FROM embedding_models AS m
    WHERE m.name = %(name)s OR %(name)s::text IS NULL AND m.is_default
"""
_OWNS_THE_TABLES = """
    SELECT pg_has_role(c.relowner, 'USAGE') FROM pg_class AS c
    WHERE c.oid = 'public.embeddings'::regclass
"""
_PLANS_AN_INDEX = """
    SELECT (vector_index_plan(m.name)).method <> 'exact' FROM embedding_models AS m
    WHERE m.name = %(name)s OR %(name)s::text IS NULL AND m.is_default
"""
_PUT_ASIDE = """
    SELECT count(*) FROM (
        SELECT FROM embeddings AS e
        JOIN embedding_models AS m ON m.name = e.embedding_model
        WHERE m.name = %s AND e.segment > m.visible_segment
        LIMIT %s
    ) AS some_rows
"""
_PUBLISH = """
    UPDATE embeddings AS e SET segment = m.visible_segment
    FROM embedding_models AS m
    WHERE m.name = e.embedding_model AND m.name = %s AND e.segment > m.visible_segment
"""


@dataclass(kw_only=True)
class _Load:
    """One bulk load: the rows of an iterable, batch by batch, and what became of them."""

    model: str | None
    on_error: OnError
    index: Index
    batch_size: int
    progress: Callable[[int], object] | None
    using: str
    replace_owner: bool = False
    finish: Finish
    report: IngestReport = field(default_factory=IngestReport)
    dimensions: int | None = None
    indexed_rows: int = 0
    new_vectors: int = 0
    #: Whether new vectors are put aside; None: not decided yet.
    deferred: bool | None = False
    has_index: bool = False
    is_owner: bool = False
    thread: Executor | None = None
    languages: dict[str, str | SearchError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.on_error not in ("report", "raise"):
            raise InvalidArgument(f"on_error is 'report' or 'raise', not {self.on_error!r}.")
        if self.index not in ("auto", "keep", "rebuild"):
            raise InvalidArgument(f"index is 'auto', 'keep' or 'rebuild', not {self.index!r}.")
        if self.batch_size < 1:
            raise InvalidArgument(f"batch_size must be at least 1, not {self.batch_size}.")

    def run(
        self,
        items: Iterable[Item],
        row_of: Callable[[Item], _Row],
        expected: int | None,
    ) -> IngestReport:
        """Store all of them."""
        if expected is None and isinstance(items, Sized):
            expected = len(items)
        self._look_up_model(expected)
        try:
            self._store_all(items, row_of)
        finally:
            self._close_second_connection()
            replicas.wrote(self.using)
        self._finish()
        return self.report

    def _store_all(self, items: Iterable[Item], row_of: Callable[[Item], _Row]) -> None:
        rows: dict[_Key, _Row] = {}
        given = refused = size = 0
        for item in items:
            given += 1
            try:
                key = _key_of(item)
                row = row_of(item)
            except SearchError as error:
                self._refuse((item.source_table, item.source_id, item.chunk_index), error)
                refused += 1
            else:
                rows[key] = row
                size += sum(len(value) for value in row if isinstance(value, (str, bytes)))
            if given >= self._batch_limit() or size >= BATCH_BYTES:
                self._store(rows, given, refused)
                rows = {}
                given = refused = size = 0
        if given:
            self._store(rows, given, refused)

    def _look_up_model(self, expected: int | None) -> None:
        with search_errors(), connections[self.using].cursor() as cursor:
            cursor.execute(_MODEL, {"name": self.model})
            row = cursor.fetchone()
            cursor.execute(_OWNS_THE_TABLES)
            (self.is_owner,) = cursor.fetchone()
        if row is not None:
            self.model, self.dimensions, self.has_index, self.indexed_rows = row
        if self.index == "rebuild":
            if not self.is_owner:
                raise InvalidArgument(
                    "Only the owner of the tables can rebuild an index.",
                    'Nothing was changed. Load with index="keep", or as the owner.',
                )
            self.deferred = True
        elif self.index == "auto" and self.has_index and self.is_owner:
            large = max(FEW, self.indexed_rows // 3)
            self.deferred = None if expected is None else expected > large

    @property
    def _few(self) -> int:
        """New vectors up to which writing them beside the index is quicker than a rebuild."""
        return max(FEW, self.indexed_rows // 10)

    def _batch_limit(self) -> int:
        if self.deferred is None:
            return min(self.batch_size, self._few)
        return self.batch_size

    # Rows

    def document_row(self, document: Document) -> _Row:
        """What is copied of a document. Raises the `SearchError` that refuses it."""
        title = _text(document.title, "title")
        content = _text(document.content, "content")
        user_id = document.user_id
        if user_id is not None and not (
            isinstance(user_id, int) and -(1 << 63) <= user_id < 1 << 63
        ):
            raise InvalidArgument(f"user_id is an integer of 64 bits, not {user_id!r}.")
        return (
            user_id,
            title,
            content,
            _tags(document.tags) if document.tags else _NO_TAGS,
            None if document.language is None else self._language(document.language),
            _NO_METADATA if document.metadata == {} else _metadata(document.metadata),
            content_hash(title, content),
            None if document.embedding is None else self._vector(document.embedding),
        )

    def vector_row(self, vector: DocumentVector) -> _Row:
        """What is copied of a vector. Raises the `SearchError` that refuses it."""
        text_hash = vector.content_hash
        return (
            None,
            None,
            None,
            None,
            None,
            None,
            None if text_hash is None else _text(text_hash, "content_hash"),
            self._vector(vector.embedding),
        )

    def _language(self, name: str) -> str:
        """The text search configuration as it is stored, asked for once."""
        known = self.languages.get(_text(name, "language"))
        if known is None:
            try:
                with (
                    search_errors(),
                    transaction.atomic(using=self.using),
                    connections[self.using].cursor() as cursor,
                ):
                    cursor.execute("SELECT text_search_language(%s)::text", [name])
                    (known,) = cursor.fetchone()
            except InvalidArgument as error:
                known = error
            self.languages[name] = known
        if isinstance(known, SearchError):
            raise InvalidArgument(known.message)
        return known

    def _vector(self, vector: Sequence[float]) -> bytes:
        """The value in pgvector's binary form, checked as check_vector() in SQL does."""
        try:
            if hasattr(vector, "astype"):  # a NumPy array, without importing NumPy
                values = vector.astype("f4")
                (count,) = values.shape
                length = math.sqrt(values @ values)
                data: bytes = values.astype(">f4").tobytes()
            else:
                values = vector if isinstance(vector, (list, tuple)) else list(vector)
                count = len(values)
                length = math.hypot(*values)
                data = struct.pack(f">{count}f", *values)
        except OverflowError as error:
            raise InvalidArgument(_NOT_FINITE) from error
        except (TypeError, ValueError, struct.error) as error:
            raise InvalidArgument("The vector is not a list of numbers.") from error
        if not 1e-3 <= length <= 6e4:
            if not count or not all(map(math.isfinite, struct.unpack(f">{count}f", data))):
                raise InvalidArgument(_NOT_FINITE)
            if length == 0:
                raise ZeroVector("The vector is zero: it has no direction.")
            raise ZeroVector(
                f"The vector has length {length:g}, outside 0.001 to 60000: "
                "half precision would lose its direction."
            )
        if count != self.dimensions:
            if self.dimensions is not None:
                raise DimensionMismatch(
                    f"The vector has {count} dimensions, "
                    f'but model "{self.model}" has {self.dimensions}.'
                )
            if count > 16_000:
                raise DimensionMismatch(f"The vector has {count} dimensions; 16000 is the most.")
            self.dimensions = count
        return struct.pack(">HH", count, 0) + data

    # Batches

    def _refuse(self, key: tuple[object, object, int], error: SearchError) -> None:
        source_table, source_id = (
            str(part).encode("utf-8", "backslashreplace").decode() for part in key[:2]
        )
        chunk_index = key[2]
        if self.on_error == "raise":
            raise type(error)(
                f"{source_table}/{source_id}#{chunk_index}: {error.message}",
                "Its batch was not stored; those before it were.",
            ) from error
        self.report.refused += 1
        if len(self.report.refusals) < KEPT_REFUSALS:
            self.report.refusals.append(
                Refusal(source_table, source_id, chunk_index, error.code, error.message)
            )

    def _store(self, rows: dict[_Key, _Row], given: int, refused: int) -> None:
        """One batch: one transaction, or two side by side."""
        if rows:
            keys = sorted(rows)
            if self._goes_side_by_side(len(keys)):
                half = len(keys) // 2
                beside = self._second_connection().submit(self._merge, keys[half:], rows)
                merged = [self._merge(keys[:half], rows), beside.result()]
            else:
                merged = [self._merge(keys, rows)]
            for inserted, updated, new_vectors, missing in merged:
                self.report.inserted += inserted
                self.report.updated += updated
                self.report.unchanged -= inserted + updated + len(missing)
                self.new_vectors += new_vectors
                for key in missing:
                    self._refuse(key, _NO_DOCUMENT)
            self.report.unchanged += given - refused
            if self.deferred is None and self.new_vectors >= self._few:
                self.deferred = True
        if self.progress is not None:
            self.progress(given)

    def _merge(self, keys: list[_Key], rows: dict[_Key, _Row]) -> _Merged:
        """Store the rows of these keys, which are in order, in one transaction."""
        connection = connections[self.using]
        with (
            search_errors(),
            transaction.atomic(using=self.using),
            connection.cursor() as cursor,
        ):
            cursor.execute(STAGING)
            with connection.wrap_database_errors, cursor.copy(_COPY) as copy:
                copy.set_types(_TYPES)
                for position, key in enumerate(keys, 1):
                    copy.write_row((position, *key, *rows[key]))
            merged = merge_batch(
                cursor,
                model=self.model,
                dimensions=self.dimensions,
                deferred=bool(self.deferred),
                replace_owner=self.replace_owner,
            )
            missing = [keys[position - 1] for position in merged.missing]
            if missing and self.on_error == "raise":
                self._refuse(missing[0], _NO_DOCUMENT)
        return merged.inserted, merged.updated, merged.new_vectors, missing

    def _goes_side_by_side(self, rows: int) -> bool:
        """Whether a second connection is to take half of these rows.

        Where an error is to undo its batch, a batch is one transaction.
        """
        into_an_index = self.has_index and not self.deferred
        return (
            rows > (SIDE_BY_SIDE if into_an_index else 10 * SIDE_BY_SIDE)
            and self.on_error == "report"
            and not connections[self.using].in_atomic_block
        )

    def _second_connection(self) -> Executor:
        """A thread, which to Django means a connection, of this load's own."""
        if self.thread is None:
            self.thread = ThreadPoolExecutor(1)
        return self.thread

    def _close_second_connection(self) -> None:
        if self.thread is not None:
            self.thread.submit(self._close_connection)
            self.thread.shutdown()

    def _close_connection(self) -> None:
        connections[self.using].close()

    def _finish(self) -> None:
        if self.dimensions is None:
            return
        if not self.deferred:
            if self._wants_its_first_index():
                self._build("vector searches compare all of them until")
            return
        if self.index == "auto":
            # Fewer were new than expected: the index takes them in as they are.
            with search_errors(), connections[self.using].cursor() as cursor:
                cursor.execute(_PUT_ASIDE, [self.model, self._few + 1])
                (count,) = cursor.fetchone()
                if count <= self._few:
                    cursor.execute(_PUBLISH, [self.model])
                    return
        self._build("vector searches find the new ones once")

    def _build(self, meanwhile: str) -> None:
        """The index over all; where it cannot be had that is said, and the rows are stored."""
        try:
            self.report.index = self.finish(self.model, using=self.using)
        except SearchError as error:
            raise type(error)(
                error.message,
                f"All rows are stored; {meanwhile} rebuild_vector_indexes('{self.model}') has "
                f"run. {error.hint.removeprefix('Nothing was changed. ')}",
            ) from error

    def _wants_its_first_index(self) -> bool:
        """Whether this load has made the model large enough for the index it lacks."""
        if (
            self.index != "auto"
            or self.has_index
            or not self.is_owner
            or self.new_vectors <= self._few
            or connections[self.using].in_atomic_block
        ):
            return False
        with search_errors(), connections[self.using].cursor() as cursor:
            cursor.execute(_PLANS_AN_INDEX, {"name": self.model})
            return bool(cursor.fetchone()[0])


def _key_of(item: Document | DocumentVector) -> _Key:
    source_table = _text(item.source_table, "source_table")
    source_id = _text(item.source_id, "source_id")
    if not source_table or not source_id:
        raise InvalidArgument("source_table and source_id must name the row; one is empty.")
    if len(source_table) > 128 or len(source_id) > 500:
        raise InvalidArgument(
            "source_table has up to 128 characters and source_id up to 500; "
            f"these have {len(source_table)} and {len(source_id)}."
        )
    chunk_index = item.chunk_index
    if not isinstance(chunk_index, int) or not 0 <= chunk_index < 1 << 31:
        raise InvalidArgument(f"chunk_index counts from 0; it is {chunk_index!r}.")
    return source_table, source_id, chunk_index


def _text(value: str, name: str) -> str:
    """The text itself, if PostgreSQL can store it."""
    if not isinstance(value, str):
        raise InvalidArgument(f"{name} is not a text: {value!r:.100}.")
    if "\0" in value:
        raise InvalidArgument(f"{name} holds a NUL character.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgument(
                f"{name} holds a lone surrogate, U+{ord(value[error.start]):04X}: "
                "its source was read with a wrong encoding."
            ) from error
    return value


def _tags(tags: Sequence[str]) -> bytes:
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise InvalidArgument(f"tags is not a list of texts: {tags!r:.100}.")
    texts = []
    for tag in tags:
        texts.append(_text(tag, "a tag").encode())
        if len(tag) > 500:  # an entry of the index on tags holds some 2,700 bytes
            raise InvalidArgument(f"A tag has up to 500 characters; one has {len(tag)}.")
    parts = [struct.pack(">iiiii", 1, 0, 25, len(texts), 1)]
    for text in texts:
        parts += struct.pack(">i", len(text)), text
    return b"".join(parts)


def _metadata(metadata: Mapping[str, Any]) -> bytes:
    if not isinstance(metadata, Mapping):
        raise InvalidArgument(f"metadata is not an object: {metadata!r:.100}.")
    try:
        text = json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"metadata cannot be written as JSON: {error}.") from error
    if "\\u0000" in text and _JSON_NUL.search(text):
        raise InvalidArgument("metadata holds a NUL character.")
    return b"\x01" + _text(text, "metadata").encode()
