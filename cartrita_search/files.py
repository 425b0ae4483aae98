"""Documents from files: JSON Lines and CSV, of any length in constant memory.

`DocumentFile` reads, `load_file` (``manage.py load_documents``) stores.

A line of JSON Lines is an object, a row of CSV has the columns, of these names:

================  ===========================================================
``id``            or ``source_id`` or ``_id``: the key of the source row, text
                  or an integer; required
``source_table``  the source, where the load names none for all
``title``         text
``content``       or ``text``: text
``embedding``     the vector, where there is one already: a list of numbers; in
                  CSV, and also in JSON, its text ``[0.1, 0.2]``
``owner``         or ``user_id``: integer; left out, a stored document keeps its
                  owner and a new one is everybody's
``tags``          a list of texts; in CSV one text, cut at the tag separator
``language``      a text search configuration
``chunk_index``   or ``chunk``: from 0, where a source row has several documents
``metadata``      an object; in CSV its JSON
================  ===========================================================

Null, an empty cell and a name left out are the same. Other names are passed over.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import math
import re
import sqlite3
import sys
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, NoReturn, cast

from django.db import DEFAULT_DB_ALIAS, transaction

from .db import MAXIMUM_DIMENSIONS
from .errors import InvalidArgument, UnknownModel, UnreadableInput, search_errors
from .ingest import (
    BATCH_SIZE,
    KEPT_REFUSALS,
    Document,
    Finish,
    IngestReport,
    prune_source,
    upsert_documents,
)
from .models import EmbeddingModel
from .sources import delete_extra_chunks, finish_if_large

#: Bytes of the longest line that is read. It bounds what a file without line ends
#: can take of memory; a vector of 16,000 dimensions is a third of a megabyte.
MAX_LINE = 32 * 2**20

#: Names that are passed over and kept for the report, at most.
KEPT_NAMES = 20

#: Every field, and the names that it goes by.
NAMES = {
    "id": ("id", "source_id", "_id"),
    "source_table": ("source_table",),
    "title": ("title",),
    "content": ("content", "text"),
    "embedding": ("embedding",),
    "owner": ("owner", "user_id"),
    "tags": ("tags",),
    "language": ("language",),
    "chunk_index": ("chunk_index", "chunk"),
    "metadata": ("metadata",),
}
_FIELDS = {name: field for field, names in NAMES.items() for name in names}

_BIGINT = range(-(2**63), 2**63)
_INTEGER = range(2**31)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions:
    """How a file is to be read."""

    #: The source of every document; None: each line names its own.
    source: str | None = None
    #: "jsonl", "csv", or "auto": by the file's name, standard input being JSON Lines.
    format: str = "auto"
    #: CSV only: column by field, beside those that have a field's name. See `parse_columns`.
    columns: Mapping[str, str] = field(default_factory=dict)
    #: Any that has ASCII in its place. A byte order mark of UTF-8 is passed over.
    encoding: str = "utf-8"
    #: CSV only; None: a tab for .tsv, else a comma.
    delimiter: str | None = None
    #: CSV only: what stands between two tags of a cell.
    tag_separator: str = ","


@dataclass(frozen=True, slots=True)
class RefusedLine:
    """A line that was not stored, and why."""

    #: From 1; the first of those that a CSV row stretches over.
    line: int
    message: str


@dataclass(slots=True)
class LoadReport:
    """What a load did. Every document read is in one of the first four, but in a dry run."""

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    #: Lines that could not be read, and documents that could not be stored.
    refused: int = 0
    #: Documents that could be read.
    documents: int = 0
    #: Of these, those that a later line with the same key replaced.
    duplicates: int = 0
    #: Stored documents deleted because the file does not hold them; None: not looked for.
    pruned: int | None = None
    #: The first `KEPT_REFUSALS` refusals, by line.
    refusals: list[RefusedLine] = field(default_factory=list)
    #: Names of the file that no field goes by, the first `KEPT_NAMES`.
    passed_over: list[str] = field(default_factory=list)
    #: The report of the index build, where the load ended with one.
    index: str = ""
    #: The model of the file's vectors, where the database did not know it before.
    new_model: str | None = None


def parse_columns(text: str) -> dict[str, str]:
    """``id=article_no,title=headline`` as column by field.

    A field goes by any of its `NAMES`. A pair that holds a comma is written in
    double quotes: ``id=no,"title=headline, long"``. Raises `InvalidArgument`.
    """
    columns: dict[str, str] = {}
    for pair in next(csv.reader([text]), []):
        name, is_pair, column = pair.partition("=")
        known = _FIELDS.get(name.strip())
        if not is_pair or not column or known is None or known in columns:
            raise InvalidArgument(
                f"The column mapping has {pair!r}"
                + (": that field twice." if is_pair and known in columns else "."),
                f"Write FIELD=COLUMN,…; the fields are {', '.join(NAMES)}.",
            )
        columns[known] = column
    return columns


# --- Reading ----------------------------------------------------------------


class _Unreadable(Exception):
    """Why one line is no document. The file goes on after it."""


class DocumentFile:
    """The documents of a file, in its order, each with its line.

    Iterating yields ``(line, Document)``, or ``(line, UnreadableInput)`` where a line
    is no document; the message names the line. Memory is that of the longest line.
    Gzip is recognised by its content. ``-`` is standard input.

    Raises `UnreadableInput` if the file cannot be opened or is of another kind, and
    `InvalidArgument` if the options do not fit it.
    """

    def __init__(self, path: str, options: FileOptions | None = None) -> None:
        self.path = path
        self.options = options or FileOptions()
        #: Names that no field goes by, in their order; filled by reading.
        self.passed_over: dict[str, None] = {}
        name = path.removesuffix(".gz").lower()
        self._is_csv = _format(name, self.options) == "csv"
        self._encoding = _ascii_compatible(self.options.encoding)
        self._delimiter = self.options.delimiter or ("\t" if name.endswith(".tsv") else ",")
        if self._delimiter == "\\t":  # as a shell hands it over
            self._delimiter = "\t"
        if self.options.columns and not self._is_csv:
            raise InvalidArgument("A column mapping is for CSV; this is read as JSON Lines.")
        if len(self._delimiter) != 1 or self._delimiter in '\r\n"':
            raise InvalidArgument(f"The delimiter must be one character, not {self._delimiter!r}.")
        if not self.options.tag_separator:
            raise InvalidArgument("The tag separator is empty, and so stands between no two tags.")

    def count_lines(self) -> int | None:
        """How many lines there are; None for what can be read only once."""
        if self.path == "-" or not Path(self.path).is_file():
            return None
        with self._open() as stream:
            try:
                return sum(block.count(b"\n") for block in iter(lambda: stream.read(2**20), b""))
            except _DAMAGED:
                return None  # told when it is read for good

    def __iter__(self) -> Iterator[tuple[int, Document | UnreadableInput]]:
        with self._open() as stream:
            lines = _Lines(stream)
            try:
                records = (
                    self._csv_records(lines) if self._is_csv else map(self._json_record, lines)
                )
            except (_Unreadable, csv.Error) as error:
                raise UnreadableInput(
                    f"{self.path} has no header that can be read: {error}.", "Nothing was changed."
                ) from error
            while True:
                number = lines.number + 1
                item: Document | UnreadableInput
                try:
                    record = next(records)
                    if record is None:
                        continue
                    item = self._document(record)
                except StopIteration:
                    return
                except (_Unreadable, csv.Error, RecursionError) as error:
                    reason = "nested too deeply" if isinstance(error, RecursionError) else error
                    item = UnreadableInput(f"Line {number}: {reason}.")
                yield number, item

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        try:
            raw = sys.stdin.buffer if self.path == "-" else Path(self.path).open("rb")  # noqa: SIM115
        except OSError as error:
            raise UnreadableInput(
                f"{self.path} cannot be read: {error.strerror}.", "Nothing was changed."
            ) from error
        with nullcontext() if self.path == "-" else raw:
            head = cast("Any", raw).peek(2)[:2]
            if head in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:
                raise UnreadableInput(
                    f"{self.path} is UTF-16. Nothing was changed.",
                    "Convert it: iconv -f UTF-16 -t UTF-8",
                )
            is_gzip = head == b"\x1f\x8b"
            yield cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if is_gzip else raw

    # Each of these takes what stands on one line to values by field; None: nothing does.

    def _json_record(self, line: bytes) -> dict[str, Any] | None:
        if not line.strip():
            return None
        try:
            text = line.decode(self._encoding)
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise _Unreadable(
                f"not {self._encoding}, by byte {error.start + 1}, 0x{byte:02X}"
            ) from error
        record = _json(text.rstrip())
        if not isinstance(record, dict):
            raise _Unreadable(f"not a JSON object but {_kind(record)}")
        values: dict[str, Any] = {}
        for name, value in record.items():
            known = _FIELDS.get(name)
            if known is None:
                self._pass_over(name)
            elif value is not None:
                values.setdefault(known, value)
        return values

    def _csv_records(self, lines: _Lines) -> Iterator[dict[str, Any] | None]:
        # Bytes that are no text come through to the cell that has them, so that the
        # rows around it are told apart as they should be.
        decoded = map(partial(str, encoding=self._encoding, errors="surrogateescape"), lines)
        csv.field_size_limit(MAX_LINE)  # the process's own; the default is too low for texts
        rows = csv.reader(decoded, delimiter=self._delimiter, strict=True)
        header = next((row for row in rows if row), [])
        positions = self._positions(header)

        def record(row: list[str]) -> dict[str, Any] | None:
            if row and len(row) != len(header):
                raise _Unreadable(f"{len(row)} columns, where the header has {len(header)}")
            for cell in row:
                if escaped := re.search("[\udc80-\udcff]", cell):
                    byte = ord(escaped[0]) - 0xDC00
                    raise _Unreadable(f"not {self._encoding}, by the byte 0x{byte:02X}")
            values = {known: row[at] for known, at in positions.items()} if row else {}
            return {
                known: self._typed(known, text) for known, text in values.items() if text
            } or None

        return map(record, rows)

    def _positions(self, header: list[str]) -> dict[str, int]:
        """Where each field stands in a row; `InvalidArgument` if the header does not do."""
        columns = {_FIELDS[name]: name for name in reversed(header) if name in _FIELDS}
        columns |= self.options.columns
        there = f"The columns are {', '.join(map(repr, header))}."
        for known, column in columns.items():
            if (times := header.count(column)) != 1:
                raise InvalidArgument(
                    f"{self.path} has {f'{times} columns' if times else 'no column'} "
                    f"{column!r}, meant for {known}.",
                    f"Nothing was changed. {there}",
                )
        for wanted in ({"id"}, {"title", "content", "embedding"}):
            if header and not wanted & columns.keys():
                raise InvalidArgument(
                    f"{self.path} has no column for {' or '.join(sorted(wanted))}.",
                    f"Nothing was changed. Name it by --columns FIELD=COLUMN. {there}",
                )
        for name in header:
            if name not in columns.values():
                self._pass_over(name)
        return {known: header.index(column) for known, column in columns.items()}

    def _typed(self, known: str, text: str) -> Any:
        if known in {"owner", "chunk_index"}:
            return int(text) if re.fullmatch(r"-?[0-9]{1,20}", text) else text
        if known == "tags":
            tags = map(str.strip, text.split(self.options.tag_separator))
            return [tag for tag in tags if tag]
        return _json(text, "metadata") if known == "metadata" else text

    def _document(self, values: dict[str, Any]) -> Document:
        key = values.get("id")
        if isinstance(key, int) and not isinstance(key, bool):
            key = values["id"] = str(key)
        if key is None or key == "":
            raise _Unreadable(f"no id; it goes by {', '.join(NAMES['id'])}")
        source = self.options.source or values.get("source_table")
        if not source:
            raise _Unreadable("no source_table, and none is named for all")
        for known in ("id", "title", "content", "language"):
            _expect(values, known, str, "text")
        _expect({"source_table": source}, "source_table", str, "text")
        _expect(values, "metadata", dict, "an object")
        _expect(values, "tags", list, "a list of texts")
        for tag in values.get("tags", ()):
            _expect({"tags": tag}, "tags", str, "a list of texts")
        for known, allowed in (("owner", _BIGINT), ("chunk_index", _INTEGER)):
            number = values.get(known, 0)
            if not isinstance(number, int) or isinstance(number, bool) or number not in allowed:
                raise _Unreadable(f"{known} must be an integer, not {_shown(number)}")
        embedding = values.pop("embedding", None)
        _check_storable([source, values])
        return Document(
            source,
            values["id"],
            title=values.get("title", ""),
            content=values.get("content", ""),
            embedding=None if embedding is None else _vector(embedding),
            metadata=values.get("metadata", {}),
            user_id=values.get("owner"),
            chunk_index=values.get("chunk_index", 0),
            language=values.get("language"),
            tags=values.get("tags", ()),
        )

    def _pass_over(self, name: str) -> None:
        if len(self.passed_over) < KEPT_NAMES:
            # A lone surrogate could not be printed.
            self.passed_over[name[:100].encode(errors="backslashreplace").decode()] = None


#: What reading compressed data raises when they are damaged or end too early.
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)


class _Lines:
    """The lines of a stream, counted; unlike a generator it goes on after an error."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.number = 0
        self._stream: IO[bytes] | None = stream

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> bytes:
        line = self._read()
        if not line:
            raise StopIteration
        self.number += 1
        if self.number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = self._read()
            raise _Unreadable(f"longer than {MAX_LINE:,} bytes")
        return line

    def _read(self) -> bytes:
        if self._stream is None:
            return b""
        try:
            return self._stream.readline(MAX_LINE + 1)
        except (*_DAMAGED, OSError) as error:
            self._stream = None
            raise _Unreadable(f"the file cannot be read from here on: {error}") from error


def _format(name: str, options: FileOptions) -> str:
    if options.format != "auto":
        return options.format
    suffix = Path(name).suffix
    known = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv"}
    if name != "-" and suffix not in known:
        raise InvalidArgument(
            f"The name {name!r} does not tell its format.", "Give --format jsonl or --format csv."
        )
    return known.get(suffix, "jsonl")


def _ascii_compatible(encoding: str) -> str:
    ascii_text = '\r\n\t",;{}[]'
    try:
        fits = ascii_text.encode(encoding).removeprefix(codecs.BOM_UTF8) == ascii_text.encode()
    except LookupError as error:
        raise InvalidArgument(f"There is no encoding {encoding!r}.", "Try utf-8.") from error
    if not fits:
        raise InvalidArgument(
            f"Lines of {encoding} cannot be told apart.",
            f"Convert the file: iconv -f {encoding} -t UTF-8",
        )
    # The mark is taken away by _Lines, wherever it is.
    return "utf-8" if encoding.lower().replace("_", "-") == "utf-8-sig" else encoding


def _json(text: str, what: str = "JSON") -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise _Unreadable(f"broken {what} at column {error.colno}: {error.msg}") from error
    except ValueError as error:
        raise _Unreadable(f"broken {what}: {error}") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return kinds.get(type(value), "null" if value is None else "a number")


def _shown(value: object) -> str:
    return repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:40]}…"


def _expect(values: Mapping[str, Any], known: str, kind: type, what: str) -> None:
    value = values.get(known)
    if value is not None and not isinstance(value, kind):
        raise _Unreadable(f"{known} must be {what}, not {_kind(value)}")


def _vector(value: object) -> Sequence[float]:
    """Single precision, as the column has it, and an eighth of a list's memory."""
    components = _json(value, "embedding") if isinstance(value, str) else value
    if not isinstance(components, list) or not components:
        raise _Unreadable(f"embedding must be a list of numbers, not {_shown(components)}")
    try:
        vector = array("f", components)
    except (TypeError, OverflowError) as error:
        raise _Unreadable("embedding holds something that is not a number") from error
    if not math.isfinite(sum(vector)):
        raise _Unreadable("embedding holds a number beyond single precision")
    if not any(vector):
        raise _Unreadable("embedding is all zeros")
    return vector


def _check_storable(value: object) -> None:
    """Refuse what PostgreSQL's text and jsonb cannot hold."""
    if isinstance(value, str):
        if "\0" in value:
            raise _Unreadable("a NUL character, which PostgreSQL's text cannot hold")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            surrogate = ord(error.object[error.start])
            raise _Unreadable(f"a lone surrogate, U+{surrogate:04X}") from error
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check_storable(name)
            _check_storable(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_storable(inner)
    elif isinstance(value, float) and not math.isfinite(value):
        raise _Unreadable("a number beyond double precision")


# --- Storing ----------------------------------------------------------------


def load_file(
    file: DocumentFile,
    *,
    model: str | None = None,
    on_error: Literal["report", "raise"] = "report",
    index: Literal["auto", "keep", "rebuild"] = "auto",
    expected: int | None = None,
    prune: bool = False,
    dry_run: bool = False,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int], object] | None = None,
    finish: Finish | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> LoadReport:
    """Store the documents of a file, in constant memory.

    Vectors are stored under `model`, by default the database's default model; a
    document without one awaits it. Of several lines with one key the last is stored.
    Lines that cannot be read or stored are reported and the rest is stored, in
    batches that are a transaction each. With `on_error` "raise" the whole load is
    one transaction, which any such line undoes.

    `index`, `finish`, and `expected`, the number of lines if it is known, are
    `upsert_documents`'.

    `prune` deletes what the database holds of the file's sources and the file does
    not, chunks beyond a row's last among it; but not where a line was refused, which
    may have been about any of them. `dry_run` reads everything and writes nothing:
    it finds every line that cannot be read, but not what only storing tells, as an
    unknown language. After many changes the keyword statistics are refreshed.
    `progress(n)` is called as lines are read.

    Raises `UnreadableInput` for a file that cannot be read or holds no documents,
    `UnknownModel` for vectors without a model, and what reading and storing raise.
    """
    with closing(_Load(file, model, using)) as load, search_errors():
        documents = load.documents(stop=on_error == "raise", progress=progress)
        with transaction.atomic(using=using) if on_error == "raise" else nullcontext():
            if dry_run:
                for _ in documents:
                    pass
            else:
                # Its "raise" would name the key alone, and keep the batches before.
                stored = upsert_documents(
                    documents,
                    model=model,
                    index=index,
                    expected=expected,
                    batch_size=batch_size,
                    finish=finish,
                    using=using,
                )
                load.add(stored)
            if not load.report.documents and not load.report.refused:
                raise UnreadableInput(f"{file.path} holds no documents.", "Nothing was changed.")
            if load.report.refused and on_error == "raise":
                raise UnreadableInput(load.report.refusals[0].message, "Nothing was changed.")
            if prune and not dry_run and not load.report.refused:
                load.prune()
        report = load.finish()
        if not dry_run and not report.index:
            changed = report.inserted + report.updated + (report.pruned or 0)
            finish_if_large(changed, using=using)
        return report


class _Load:
    """One load: its report, and the line of every key, on disk where memory is short."""

    def __init__(self, file: DocumentFile, model: str | None, using: str) -> None:
        self.file = file
        self.using = using
        self.report = LoadReport()
        self.model = model
        self.is_known = False
        #: Of the model; None: it is not there yet, or none is the default.
        self.dimensions: int | None = None
        models = EmbeddingModel.objects.using(using)
        found = models.filter(name=model) if model else models.filter(is_default=True)
        for registered in found:
            self.model, self.dimensions = registered.name, registered.dimensions
            self.is_known = True
        # A database without a name is a temporary file of SQLite's own.
        self.lines = sqlite3.connect("")
        self.lines.execute(
            "CREATE TABLE lines (source TEXT, id TEXT, chunk INTEGER, line INTEGER, "
            "PRIMARY KEY (source, id, chunk)) WITHOUT ROWID"
        )

    def close(self) -> None:
        """Take the temporary file away."""
        self.lines.close()

    def documents(
        self, *, stop: bool, progress: Callable[[int], object] | None
    ) -> Iterator[Document]:
        """Those that can be stored; the others go to the report, or `stop` at the first."""
        before = 0
        for line, item in self.file:
            if progress is not None:
                progress(line - before)
            before = line
            document = self.with_fitting_vector(line, item)
            if isinstance(document, UnreadableInput):
                if stop:
                    raise UnreadableInput(document.message, "Nothing was changed.")
                self.report.refused += 1
                if len(self.report.refusals) < KEPT_REFUSALS:
                    self.report.refusals.append(RefusedLine(line, document.message))
                continue
            self.report.documents += 1
            self.lines.execute(
                "INSERT OR REPLACE INTO lines VALUES (?, ?, ?, ?)",
                (document.source_table, document.source_id, document.chunk_index, line),
            )
            yield document

    def with_fitting_vector(
        self, line: int, item: Document | UnreadableInput
    ) -> Document | UnreadableInput:
        """The item, or why its vector is none of the model."""
        if isinstance(item, UnreadableInput) or item.embedding is None:
            return item
        if self.model is None:
            raise UnknownModel(
                f"Line {line} has a vector, but no model is named and there is no default model.",
                "Name the model that made it.",
            )
        if self.dimensions is None and len(item.embedding) <= MAXIMUM_DIMENSIONS:
            self.dimensions = len(item.embedding)
        if self.dimensions is not None and len(item.embedding) != self.dimensions:
            return UnreadableInput(
                f"Line {line}: the vector has {len(item.embedding)} dimensions, "
                f'but model "{self.model}" has {self.dimensions}.'
            )
        return item

    def add(self, stored: IngestReport) -> None:
        """What was stored, its refusals with their lines."""
        report = self.report
        report.inserted, report.updated = stored.inserted, stored.updated
        report.unchanged, report.index = stored.unchanged, stored.index
        report.refused += stored.refused
        for refusal in stored.refusals:
            key = (refusal.source_table, refusal.source_id, refusal.chunk_index)
            (line,) = self.lines.execute(
                "SELECT line FROM lines WHERE (source, id, chunk) = (?, ?, ?)", key
            ).fetchone()
            report.refusals.append(RefusedLine(line, f"Line {line}: {refusal.message}"))

    def prune(self) -> None:
        """Delete what the sources of the file hold beside its documents."""
        pruned = 0
        for (source,) in self.lines.execute("SELECT DISTINCT source FROM lines").fetchall():
            chunks = self.lines.execute(
                "SELECT id, max(chunk) + 1 FROM lines WHERE source = ? GROUP BY id", [source]
            )
            while batch := dict(chunks.fetchmany(BATCH_SIZE)):
                pruned += delete_extra_chunks(source, batch, using=self.using)
            ids = self.lines.execute("SELECT DISTINCT id FROM lines WHERE source = ?", [source])
            pruned += prune_source(source, (key for (key,) in ids), using=self.using)
        self.report.pruned = pruned

    def finish(self) -> LoadReport:
        """The report of the whole."""
        report = self.report
        (keys,) = self.lines.execute("SELECT count(*) FROM lines").fetchone()
        report.duplicates = report.documents - keys
        report.refusals = sorted(report.refusals, key=lambda it: it.line)[:KEPT_REFUSALS]
        report.passed_over = list(self.file.passed_over)
        if self.dimensions is not None and not self.is_known:
            report.new_model = self.model
        return report
