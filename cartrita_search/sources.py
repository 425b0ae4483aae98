"""A Django project's own rows, kept in step as documents.

A project registers a model once, in ``search_sources.py`` of any installed app
(imported at start) or in ``AppConfig.ready()``::

    register_source(Article, title="headline", content="body", owner="author")

and `sync_source` (``manage.py sync_documents``) brings the documents up to date:
rows that are new or changed are stored, those that are as stored are not written,
documents whose row is gone are deleted. There are no signals: saving a row costs
nothing more than before, bulk updates and other programs' writes are not missed,
and what changed between two runs is picked up by the next one.

Vectors are not made here: a changed document's are stale, a new one's missing.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from django.core.exceptions import FieldDoesNotExist, ValidationError
from django.core.serializers.json import DjangoJSONEncoder
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.functions import Now

from .errors import InvalidArgument, search_errors
from .ingest import (
    KEPT_REFUSALS,
    Document,
    IngestReport,
    Refusal,
    finish_load,
    upsert_documents,
)
from .models import KeywordCorpus, SearchDocument, SourceCheckpoint

#: Rows of one batch, which is one transaction. Whole instances are held, so fewer
#: than a bulk load takes.
BATCH_SIZE = 500

#: The name of a field, relations followed as in ``author__team``, or what computes
#: the value from an instance.
Getter: TypeAlias = str | Callable[[Any], Any]

_GETTERS = ("title", "content", "owner", "tags", "language", "metadata")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A registered model; made by `register_source`, which explains the fields."""

    model: type[models.Model]
    source_table: str
    title: Getter | None
    content: Getter
    owner: Getter | None
    tags: Getter | None
    language: Getter | None
    metadata: Getter | None
    queryset: Callable[[], models.QuerySet[Any]] | None
    chunk: Callable[[str], Iterable[str]] | None

    def documents(self, instance: models.Model) -> list[Document]:
        """The documents of one row, chunk by chunk.

        Raises TypeError for a value of the wrong type, and whatever the source's
        callables raise.
        """
        value = {name: self._value(name, instance) for name in _GETTERS}
        content = _text(value["content"])
        chunks = [content] if self.chunk is None else list(self.chunk(content))
        shared: dict[str, Any] = {
            "title": _text(value["title"]),
            "user_id": _owner(value["owner"]),
            "tags": _tags(value["tags"]),
            "language": value["language"] or None,
            "metadata": _metadata(value["metadata"]),
        }
        return [
            Document(self.source_table, str(instance.pk), content=text, chunk_index=n, **shared)
            for n, text in enumerate(chunks)
        ]

    def rows(self, using: str = DEFAULT_DB_ALIAS) -> models.QuerySet[Any]:
        """Every row that has documents, by primary key."""
        if self.queryset is None:
            rows = self.model._default_manager.using(using)
        else:
            rows = self.queryset().using(using)
        # A relation followed row by row would be a query for each.
        followed = {
            "__".join(getter.split("__")[:-1])
            for name in _GETTERS
            if isinstance(getter := getattr(self, name), str) and "__" in getter
        }
        return (rows.select_related(*followed) if followed else rows.all()).order_by("pk")

    def key(self, text: str) -> Any:
        """The primary key that `text` stands for; ValidationError if it can be none."""
        return self.model._meta.pk.to_python(text)

    def _value(self, name: str, instance: models.Model) -> Any:
        getter = getattr(self, name)
        if getter is None:
            return None
        if callable(getter):
            return getter(instance)
        value: Any = instance
        for attribute in _attributes(self.model, getter):
            value = None if value is None else getattr(value, attribute)
        return value


@dataclass(slots=True)
class SyncReport(IngestReport):
    """What one run did with one source; documents are counted, and rows where it says so."""

    source_table: str = ""
    #: Rows read by this run.
    rows: int = 0
    #: Documents deleted: their row is gone, or has fewer chunks than before.
    deleted: int = 0
    #: The last key of the run before, which was interrupted and is gone on with.
    resumed_after: str | None = None
    #: Rows that the interrupted run had done.
    rows_before: int = 0


_registry: dict[str, Source] = {}


def register_source(
    model: type[models.Model],
    *,
    content: Getter,
    title: Getter | None = None,
    owner: Getter | None = None,
    tags: Getter | None = None,
    language: Getter | None = None,
    metadata: Getter | None = None,
    source_table: str | None = None,
    queryset: Callable[[], models.QuerySet[Any]] | None = None,
    chunk: Callable[[str], Iterable[str]] | None = None,
) -> Source:
    """Let ``manage.py sync_documents`` keep the rows of `model` in step as documents.

    Each value is the name of a field (relations followed as in ``author__team``; a
    foreign key gives its key) or a callable that takes the instance:

    - `title` and `content`: text; None is empty.
    - `owner`: a person or their key. **None is shared with everybody**, also where a
      relation on the way is empty.
    - `tags`: a list of texts. `language`: a text search configuration; None keeps the
      stored one, at first the database's default. `metadata`: a dict; dates and
      decimals become text.

    `source_table` names the source in search, by default the model's table.
    `queryset()` gives the rows to take instead of all that the default manager has;
    it may prefetch. `chunk(content)` splits a text into the chunks 0 … n-1, each a
    document of its own; a row that comes to have fewer loses those too many.

    Raises `InvalidArgument` for a field that the model has not, and where
    `source_table` is registered already with another definition.
    """
    options = model._meta
    source = Source(
        model=model,
        source_table=options.db_table if source_table is None else source_table,
        title=title,
        content=content,
        owner=owner,
        tags=tags,
        language=language,
        metadata=metadata,
        queryset=queryset,
        chunk=chunk,
    )
    if options.abstract or isinstance(options.pk, models.CompositePrimaryKey):
        raise InvalidArgument(
            f"{options.label} cannot be a source: it "
            + ("is abstract." if options.abstract else "has a primary key of several columns."),
            "Register a model with a table and a primary key of one column.",
        )
    if not 1 <= len(source.source_table) <= 128:
        raise InvalidArgument(
            f"source_table has 1 to 128 characters, not {len(source.source_table)}.",
            f"It names the documents of {options.label}.",
        )
    for name in _GETTERS:
        getter = getattr(source, name)
        if isinstance(getter, str):
            _attributes(model, getter)
        elif getter is not None and not callable(getter):
            raise InvalidArgument(
                f"{name} of source {source.source_table!r} is {getter!r}.",
                "Name a field, or give a callable that takes an instance.",
            )
    if _registry.setdefault(source.source_table, source) != source:
        raise InvalidArgument(
            f"The source {source.source_table!r} is registered already, with another definition.",
            "Register each table once, or name another source_table.",
        )
    return source


def registered_sources() -> dict[str, Source]:
    """Every registered source, by its source_table."""
    return dict(sorted(_registry.items()))


def find_sources(source_tables: Sequence[str] = ()) -> list[Source]:
    """The named sources, or all; `InvalidArgument` if one, or any at all, is unknown."""
    known = registered_sources()
    if not known:
        raise InvalidArgument(
            "No source is registered, so there is nothing to keep in step.",
            "Call cartrita_search.sources.register_source in search_sources.py of an app.",
        )
    if unknown := [name for name in source_tables if name not in known]:
        raise InvalidArgument(
            f"No source {unknown[0]!r} is registered. Nothing was changed.",
            f"Registered: {', '.join(known)}.",
        )
    return [known[name] for name in dict.fromkeys(source_tables)] or list(known.values())


def sources_without_table(connection: BaseDatabaseWrapper) -> list[Source]:
    """The registered sources whose model has no table in this database."""
    sources = registered_sources().values()
    if not sources:
        return []
    with connection.cursor() as cursor:
        there = set(connection.introspection.table_names(cursor, include_views=True))
    return [source for source in sources if source.model._meta.db_table not in there]


def count_rows(source: Source, *, using: str = DEFAULT_DB_ALIAS) -> int:
    """How many rows a whole run over `source` reads."""
    _require_table(source, using)
    return source.rows(using).count()


def _require_table(source: Source, using: str) -> None:
    if source in sources_without_table(connections[using]):
        raise InvalidArgument(
            f"The source {source.source_table!r} has no table "
            f'"{source.model._meta.db_table}" in the database.',
            "Nothing was changed. Run: manage.py migrate",
        )


def sync_source(
    source: Source,
    *,
    batch_size: int = BATCH_SIZE,
    restart: bool = False,
    prune: bool = True,
    dry_run: bool = False,
    progress: Callable[[int], object] | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> SyncReport:
    """Bring the documents of `source` up to date with its rows.

    Rows are read by primary key, `batch_size` at a time, and each batch is one
    transaction together with the note of how far the run has come: a run that was
    killed is gone on with by the next, which loses nothing and repeats nothing.
    `restart` begins anew instead. Runs at the same time share the work.

    A row whose documents cannot be made or stored is refused with its key, and
    keeps the documents it had; the rest goes on. At the end, with `prune`, documents
    whose row is gone are deleted; after many changes the keyword statistics are
    refreshed. `dry_run` rolls each batch back, and so tells
    exactly what a whole run would do; it holds the same locks.

    `progress(n)` is called with the rows of each batch. Raises a `SearchError`; the
    batch it occurs in is undone, those before it stay.
    """
    if batch_size < 1:
        raise InvalidArgument(f"The batch size must be at least 1, not {batch_size}.")
    _require_table(source, using)
    run = _Run(source, batch_size, dry_run, using, SyncReport(source_table=source.source_table))
    advance = progress or (lambda rows: None)
    last_key: str | None = None
    with search_errors():
        if not dry_run:
            run.begin(restart)
            advance(run.report.rows_before)
        while rows := run.next_batch(last_key):
            last_key = str(rows[-1].pk)
            run.report.rows += len(rows)
            advance(len(rows))
        if prune:
            run.prune()
        if not dry_run:
            run.checkpoints.delete()
            done = run.report
            finish_if_large(done.inserted + done.updated + done.deleted, using=using)
    return run.report


def delete_extra_chunks(
    source_table: str, chunks: Mapping[str, int], *, using: str = DEFAULT_DB_ALIAS
) -> int:
    """Delete the chunks numbered from `chunks[source_id]` on; returns how many those were."""
    with connections[using].cursor() as cursor:
        cursor.execute(
            """
            DELETE FROM search_documents AS d
            USING unnest(%s::text[], %s::integer[]) AS kept (source_id, chunks)
            WHERE d.source_table = %s
                AND d.source_id = kept.source_id
                AND d.chunk_index >= kept.chunks
            """,
            [list(chunks), list(chunks.values()), source_table],
        )
        return int(cursor.rowcount)


def finish_if_large(changed: int, *, using: str = DEFAULT_DB_ALIAS) -> None:
    """`finish_load` where more documents changed than a tenth of those last counted.

    Fewer leave the frequencies of words, which keyword search weighs them by, about
    as they were.
    """
    corpora = KeywordCorpus.objects.using(using)
    counted = corpora.aggregate(documents=models.Sum("documents"))["documents"] or 0
    if changed * 10 > counted:
        finish_load(using=using)


# --- One run ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Run:
    source: Source
    batch_size: int
    dry_run: bool
    using: str
    report: SyncReport

    @property
    def checkpoints(self) -> models.QuerySet[SourceCheckpoint]:
        """The source's one checkpoint, or none."""
        return SourceCheckpoint.objects.using(self.using).filter(pk=self.source.source_table)

    def begin(self, restart: bool) -> None:
        """Leave a checkpoint, or find that of the run to go on with."""
        with transaction.atomic(using=self.using):
            if restart:
                self.checkpoints.delete()
            checkpoint, is_new = self.checkpoints.get_or_create(pk=self.source.source_table)
        if not is_new:
            self.report.resumed_after = checkpoint.last_key
            self.report.rows_before = checkpoint.rows

    def hold_checkpoint(self) -> SourceCheckpoint | None:
        """The checkpoint, held to the end of the transaction; None if a run has ended.

        Held before rows are read: then what a batch reads is never older than what
        the batch before it, of this run or another's, has stored.
        """
        return self.checkpoints.select_for_update().first()

    def next_batch(self, last_key: str | None) -> list[models.Model]:
        """One transaction; the rows it took, none where the end is reached.

        They come after the checkpoint's key, in a dry run after `last_key`.
        """
        with transaction.atomic(using=self.using):
            if not self.dry_run:
                checkpoint = self.hold_checkpoint()
                if checkpoint is None:
                    return []
                last_key = checkpoint.last_key
            rows = self.source.rows(self.using)
            if last_key is not None:
                rows = rows.filter(pk__gt=self.source.key(last_key))
            batch = list(rows[: self.batch_size])
            if batch:
                self.store(batch)
            if batch and not self.dry_run:
                self.checkpoints.update(
                    last_key=str(batch[-1].pk),
                    rows=models.F("rows") + len(batch),
                    updated_at=Now(),
                )
            if self.dry_run:
                transaction.set_rollback(True, using=self.using)
        return batch

    def store(self, rows: Iterable[models.Model]) -> None:
        """Store the documents of these rows, and delete the chunks they have no more."""
        documents: list[Document] = []
        chunks: dict[str, int] = {}
        for row in rows:
            try:
                made = self.source.documents(row)
            except DatabaseError:
                raise  # the transaction is of no more use
            except Exception as error:  # noqa: BLE001 - the project's callables raise anything
                self.refuse(row, error)
            else:
                documents += made
                chunks[str(row.pk)] = len(made)
        # The documents have no vectors, so no vector index is written; and a source
        # knows the owner of every row, so that "nobody" is an owner like any other.
        stored = upsert_documents(documents, index="keep", replace_owner=True, using=self.using)
        report = self.report
        report.inserted += stored.inserted
        report.updated += stored.updated
        report.unchanged += stored.unchanged
        report.refused += stored.refused
        report.refusals += stored.refusals[: KEPT_REFUSALS - len(report.refusals)]
        report.deleted += delete_extra_chunks(self.source.source_table, chunks, using=self.using)

    def refuse(self, row: models.Model, error: Exception) -> None:
        """Count a row whose documents cannot be made."""
        self.report.refused += 1
        if len(self.report.refusals) < KEPT_REFUSALS:
            self.report.refusals.append(
                Refusal(
                    self.source.source_table,
                    str(row.pk),
                    chunk_index=0,
                    code=InvalidArgument.code,
                    message=f"{type(error).__name__}: {error}",
                )
            )

    def prune(self) -> None:
        """Delete the documents of rows that are gone, comparing batch by batch of keys."""
        documents = SearchDocument.objects.using(self.using).filter(
            source_table=self.source.source_table
        )
        ids = documents.values_list("source_id", flat=True).distinct().order_by("source_id")
        batch = [""]
        while batch:
            with transaction.atomic(using=self.using):
                if not self.dry_run and self.hold_checkpoint() is None:
                    return
                batch = list(ids.filter(source_id__gt=batch[-1])[: self.batch_size])
                gone = dict.fromkeys(set(batch) - self.present(batch), 0)
                self.report.deleted += delete_extra_chunks(
                    self.source.source_table, gone, using=self.using
                )
                if self.dry_run:
                    transaction.set_rollback(True, using=self.using)

    def present(self, ids: Iterable[str]) -> set[str]:
        """Of these source_ids, those whose row is there."""
        keys = []
        for text in ids:
            # What is no key of the model's type names no row.
            with suppress(ValidationError):
                keys.append(self.source.key(text))
        there = self.source.rows(self.using).filter(pk__in=keys).values_list("pk", flat=True)
        # Compared as text: "007" is not the row 7.
        return {str(key) for key in there}


# --- Values -----------------------------------------------------------------


@functools.cache
def _attributes(model: type[models.Model], path: str) -> tuple[str, ...]:
    """The attributes to follow from an instance; `InvalidArgument` if there is no such field."""
    attributes: list[str] = []
    at: Any = model
    found: Any = None
    for name in path.split("__"):
        if at is None:
            raise _unreadable(model, path, f"{attributes[-1]} is no relation")
        try:
            found = at._meta.pk if name == "pk" else at._meta.get_field(name)
        except FieldDoesNotExist as error:
            raise _unreadable(model, path, str(error)) from error
        if not found.concrete or found.many_to_many:
            raise _unreadable(model, path, f"{name} has many values")
        attributes.append(found.name)
        at = found.related_model
    return (*attributes[:-1], found.attname)


def _unreadable(model: type[models.Model], path: str, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"{path!r} cannot be read from {model._meta.label}: {reason}.",
        "Name a field, relations followed as in author__team, or give a callable.",
    )


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _owner(value: Any) -> int | None:
    key = value.pk if isinstance(value, models.Model) else value
    if key is not None and (not isinstance(key, int) or isinstance(key, bool)):
        raise TypeError(f"the owner must be a person or an integer key, not {key!r}")
    return key


def _tags(value: Any) -> list[str]:
    if isinstance(value, str):
        raise TypeError(f"the tags must be a list of texts, not the text {value!r}")
    return [str(tag) for tag in value or ()]


def _metadata(value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"the metadata must be a dict, not {type(value).__name__}")
    encoded: dict[str, Any] = json.loads(json.dumps(dict(value or {}), cls=DjangoJSONEncoder))
    return encoded
