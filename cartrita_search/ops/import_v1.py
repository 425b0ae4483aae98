"""Bringing the rows of a v1 database over to v2: planned, in batches, resumable.

Each batch is one transaction together with the note of how far its table has come, so
that a run which was killed is gone on with by the next, without a duplicate or a gap.
A run over what came already changes nothing. v1's tables are only read.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from django.db import (
    DEFAULT_DB_ALIAS,
    InternalError,
    OperationalError,
    ProgrammingError,
    connections,
    transaction,
)
from django.db.models import F, QuerySet, Sum
from django.db.models.functions import Now
from psycopg import sql
from psycopg.errors import InsufficientPrivilege

from ..conf import search_settings
from ..db import IMPORT_LOCK, advisory_lock, direct_connection
from ..errors import (
    DatabaseUnreachable,
    InvalidArgument,
    PrivilegeMissing,
    RebuildInProgress,
    SearchError,
    UnknownModel,
    search_errors,
)
from ..ingest import FEW, STAGING, finish_load, merge_batch
from ..models import EmbeddingModel, KeywordCorpus, SearchDocument, SourceCheckpoint
from ..sources import finish_if_large
from ..v1 import documents, people, tables, weights
from ..v1.documents import OLD_EMBEDDINGS, Source
from ..v1.tables import Outcome, Table, TableMap
from ..v1.weights import OLD_CONFIGS
from .actions import record_action
from .steps import step

OPERATION = "import_v1"
#: Of a table's batches only the first two are named: the others are as the second, and
#: would be a line each in the log. At "checkpoint" its rows are stored, not committed.
STEPS = (
    "plan",
    "weights",
    "first_batch",
    "second_batch",
    "checkpoint",
    "end_of_table",
    "index",
    "record",
)

#: Rows of one batch, which is one transaction.
BATCH_SIZE = 2000

#: The checkpoint's key of v1's people; see `Source.checkpoint` for the others'.
_PEOPLE = "import_v1 users"

#: Opens a bar of so many rows under a label; what it gives is told of rows done.
Bar: TypeAlias = Callable[[int, str], AbstractContextManager[Callable[[int], object]]]


@dataclass(slots=True)
class Plan:
    """What a run would bring, table by table, and what it would not."""

    sources: list[Source] = field(default_factory=list)
    people: Table | None = None
    weights: Table | None = None
    people_rows: int = 0
    weights_rows: int = 0
    #: Tables that do not come, and why.
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether nothing would come."""
        return not (self.sources or self.people or self.weights)

    def as_json(self) -> dict[str, Any]:
        """What scripts read of it."""
        brought: list[dict[str, Any]] = []
        if self.people:
            brought.append({"table": "users", "rows": self.people_rows})
        if self.weights:
            brought.append({"table": "retrieval_configs", "rows": self.weights_rows})
        names = ("model", "dimensions", "rows", "vectors", "stored", "notes", "left")
        brought += [
            {"table": source.label, **{name: getattr(source, name) for name in names}}
            for source in self.sources
        ]
        return {"brought": brought, "skipped": self.skipped}


@dataclass(slots=True)
class ImportReport:
    """What a run did, or would do."""

    plan: Plan
    dry_run: bool = False
    outcomes: list[Outcome] = field(default_factory=list)
    #: What became of each model's vector index.
    index: dict[str, str] = field(default_factory=dict)
    #: Whether it was asked to stop before the end.
    stopped: bool = False

    def as_json(self) -> dict[str, Any]:
        """What scripts read of it."""
        return {
            "dry_run": self.dry_run,
            "stopped": self.stopped,
            "plan": self.plan.as_json(),
            "tables": [{**asdict(outcome), "read": outcome.read} for outcome in self.outcomes],
            "index": self.index,
        }


def import_v1(
    *,
    model: str | None = None,
    only: Sequence[str] = (),
    users: bool = False,
    maps: Sequence[TableMap] = (),
    batch_size: int = BATCH_SIZE,
    restart: bool = False,
    dry_run: bool = False,
    planned: Callable[[Plan], object] | None = None,
    bar: Bar | None = None,
    stop: Callable[[], bool] = lambda: False,
    using: str = DEFAULT_DB_ALIAS,
) -> ImportReport:
    """Bring v1's rows over; ``only`` these tables, people only if ``users``.

    ``model`` names the model of v1's vectors; it may be left out where the former table
    `embeddings`, or the only model there is, tells. ``maps`` say what other tables
    hold, besides those of CARTRITA_SEARCH["V1_TABLES"]. ``planned`` is called with the
    plan before anything is written, ``stop`` asked before each batch. ``restart`` reads
    tables anew that an interrupted run had read.

    A dry run reads all rows, tells which would be left out and why, and writes nothing.
    Raises a `SearchError`; what earlier batches brought stays, and the next run goes on.
    """
    if batch_size < 1:
        raise InvalidArgument(f"The batch size must be at least 1, not {batch_size}.")
    with (
        _as_search_errors(),
        direct_connection("cartrita import", using=using) as direct,
        advisory_lock(direct, IMPORT_LOCK),
    ):
        step(OPERATION, "plan")
        plan = make_plan(model=model, only=only, users=users, maps=maps, using=using)
        if planned is not None:
            planned(plan)
        run = _Run(plan, batch_size, dry_run, bar, stop, using, ImportReport(plan, dry_run))
        try:
            if restart and not dry_run:
                run.checkpoints().delete()
            run.all()
        except SearchError as error:
            if not dry_run:
                run.record(str(error))
            raise
        if not dry_run and not plan.is_empty:
            step(OPERATION, "record")
            run.record()
        return run.report


@contextmanager
def _as_search_errors() -> Iterator[None]:
    """One clear line for what the server refuses or ends: a right, a timeout, a shutdown."""
    try:
        with search_errors():
            yield
    except ProgrammingError as error:
        if not isinstance(error.__cause__, InsufficientPrivilege):
            raise
        raise PrivilegeMissing(
            f"This role may not do all that an import does: {' '.join(str(error).split())}.",
            "The batches before are stored. Import as the role that migrates.",
        ) from error
    except (InternalError, OperationalError) as error:  # the first: a replica, or read-only
        raise DatabaseUnreachable(
            f"The database server ended the work: {' '.join(str(error).split())}.",
            "The batches before are stored. Run the same again: it goes on after them.",
        ) from error


# --- The plan -----------------------------------------------------------------


#: What the adoption of a v1 database calls tables whose name v2 needs.
_FORMER = {"embeddings": OLD_EMBEDDINGS, "retrieval_configs": OLD_CONFIGS}


def make_plan(
    *,
    model: str | None = None,
    only: Sequence[str] = (),
    users: bool = False,
    maps: Sequence[TableMap] = (),
    using: str = DEFAULT_DB_ALIAS,
) -> Plan:
    """What is there, how much of it, and under which model; see `import_v1`."""
    known = {each.table: each for each in tables.KNOWN}
    known |= {
        each.table: each for each in [*map(tables.table_map, search_settings().v1_tables), *maps]
    }
    names = [*known, *_FORMER]
    if unknown := [name for name in only if name not in names]:
        raise InvalidArgument(
            f"No table {unknown[0]!r} is known to this import.",
            f"Nothing was changed. Known: {', '.join(names)}. Others by --map, people by --users.",
        )
    chosen = set(only or names)
    # The other ones of `known` are looked into by these: wholes, parts, their own vectors.
    found = {
        name: table
        for name in names
        if (name in known or name in chosen)
        and (table := tables.find_table(_FORMER.get(name, name), using=using))
    }
    plan = Plan()
    candidates = _candidates(plan, known, found, chosen, using)
    plan.sources = [source for source in candidates if source.label in chosen]
    _plan_vectors(plan, candidates, found.get("embeddings"), model, using)
    if table := found.get("retrieval_configs"):
        plan.weights, plan.weights_rows = table, tables.count_rows(table, using=using)
    _plan_people(plan, users, using)
    _say_what_stays(plan, {*known, *found}, using)
    return plan


def _candidates(
    plan: Plan,
    known: Mapping[str, TableMap],
    found: dict[str, Table],
    chosen: Container[str],
    using: str,
) -> list[Source]:
    """A source of documents for each table that is there, counted."""
    candidates: list[Source] = []
    for name, each in known.items():
        if each.given and name in chosen and name not in found:
            raise InvalidArgument(
                f"There is no table {name} in the database.", "Nothing was changed."
            )
        try:
            if name in found:
                candidates.append(documents.document_source(each, found[name], found))
        except InvalidArgument as error:
            if each.given:
                raise
            plan.skipped[name] = error.message
    for source in candidates:
        documents.count(source, using=using)
    return candidates


def _plan_vectors(
    plan: Plan, candidates: Sequence[Source], old: Table | None, model: str | None, using: str
) -> None:
    """Say under which model, of how many dimensions, each source's vectors come."""
    named = documents.models_named(old, using=using) if old else {}
    needed = "" in named or any(source.vectors for source in plan.sources)
    name_of_all = _choose_model(model, needed, [name for name in named if name], using)
    with_vectors = [source for source in candidates if source.vectors]
    for source in with_vectors:
        source.model = name_of_all
    if old:
        plan.sources += documents.embedding_sources(old, with_vectors, name_of_all, using=using)
        for source in plan.sources:
            if source.table is old:
                documents.count(source, using=using)
    documents.find_dimensions(plan.sources, using=using)


def _choose_model(given: str | None, needed: bool, named: list[str], using: str) -> str | None:
    """The model of vectors that name none: as given, or where there is one choice only."""
    if given is not None:
        if not given.strip():
            raise InvalidArgument("The model's name is empty.", "Nothing was changed.")
        return given
    registered = list(EmbeddingModel.objects.using(using).values_list("pk", flat=True))
    choices = sorted({*named, *registered})
    if len(choices) == 1:
        return choices[0]
    if not needed:
        return None
    raise UnknownModel(
        "v1 has vectors, and names the model that made them nowhere.",
        "Nothing was changed. Say which it was: --model NAME"
        + (f" ({', '.join(choices)}?)" if choices else " (text-embedding-3-small, for instance)"),
    )


def _plan_people(plan: Plan, users: bool, using: str) -> None:
    table = tables.find_table("users", using=using)
    if table is None:
        return
    if not users:
        plan.skipped["users"] = "not asked for: --users makes accounts of them"
        return
    people.check_accounts(table)
    plan.people, plan.people_rows = table, tables.count_rows(table, using=using)


def _say_what_stays(plan: Plan, known: set[str], using: str) -> None:
    for name, reason in tables.NOT_BROUGHT.items():
        if tables.find_table(name, using=using):
            plan.skipped[name] = reason
    here = {"search_documents", "embeddings", OLD_EMBEDDINGS, *known, *tables.NOT_BROUGHT}
    for name, columns in tables.other_tables_with_vectors(here, using=using).items():
        plan.skipped[name] = (
            f"unknown, with vectors in {columns}: --map table={name},key=…,content=…,"
            f"embedding={columns.split(', ')[0]}"
        )


# --- One run ------------------------------------------------------------------

_INDEX_STATE = """
    SELECT m.index_method <> 'exact', coalesce(m.indexed_rows, 0),
        (vector_index_plan(m.name)).method <> 'exact',
        EXISTS (SELECT FROM embeddings AS e
                WHERE e.embedding_model = m.name AND e.segment > m.visible_segment),
        (SELECT pg_has_role(c.relowner, 'USAGE') FROM pg_class AS c
         WHERE c.oid = 'public.embeddings'::regclass)
    FROM embedding_models AS m
    WHERE m.name = %s
"""


@dataclass(frozen=True, slots=True)
class _Run:
    plan: Plan
    batch_size: int
    dry_run: bool
    bar: Bar | None
    stop: Callable[[], bool]
    using: str
    report: ImportReport

    def all(self) -> None:
        """Bring everything that is planned."""
        if self.plan.people:
            self.people(self.plan.people)
        if self.plan.weights and not self.stop():
            self.weights(self.plan.weights)
        set_aside = {model: self.sets_aside(model) for model in self.models()}
        for source in self.plan.sources:
            if not self.stop():
                self.documents(source, set_aside.get(source.model or "", False))
        self.report.stopped = self.stop()
        if not self.dry_run and not self.report.stopped and self.plan.sources:
            step(OPERATION, "index")
            self.finish()
        if not self.dry_run and not self.report.stopped:
            # Not before: what a table's interrupted run had read is not read again because
            # a later table's was interrupted.
            self.checkpoints().delete()

    def checkpoints(self) -> QuerySet[SourceCheckpoint]:
        """How far this run, or one before it, has come in each of its tables."""
        names = [_PEOPLE, *(source.checkpoint for source in self.plan.sources)]
        return SourceCheckpoint.objects.using(self.using).filter(pk__in=names)

    def models(self) -> list[str]:
        """The models whose vectors come."""
        return sorted({s.model for s in self.plan.sources if s.model and s.vectors})

    def people(self, table: Table) -> None:
        outcome = Outcome("users")

        def bring(after: str | None) -> tuple[int, str | None]:
            return people.bring_accounts(
                table,
                outcome,
                after=after,
                limit=self.batch_size,
                dry_run=self.dry_run,
                using=self.using,
            )

        self.batches(_PEOPLE, self.plan.people_rows, outcome, bring)

    def weights(self, table: Table) -> None:
        step(OPERATION, "weights")
        with transaction.atomic(using=self.using):
            outcome = weights.bring_weights(table, dry_run=self.dry_run, using=self.using)
        self.report.outcomes.append(outcome)

    def documents(self, source: Source, set_aside: bool) -> None:
        outcome = Outcome(source.label, source.model if source.vectors else None)
        outcome.note(outcome.skipped, documents.NO_KEY, source.keyless, [])

        def bring(after: str | None) -> tuple[int, str | None]:
            with connections[self.using].cursor() as cursor:
                if not self.dry_run:
                    cursor.execute(STAGING)
                staged = documents.stage(
                    cursor, source, after=after, limit=self.batch_size, into=not self.dry_run
                )
                staged.note(outcome)
                rows = staged.rows - staged.left_out
                if self.dry_run:
                    outcome.brought += rows
                    return staged.rows, staged.last_key
                merged = merge_batch(
                    cursor,
                    model=source.model if source.dimensions else None,
                    dimensions=source.dimensions,
                    deferred=set_aside,
                    replace_owner=source.replace_owner,
                )
            outcome.brought += merged.inserted
            outcome.updated += merged.updated
            outcome.unchanged += rows - merged.inserted - merged.updated
            return staged.rows, staged.last_key

        self.batches(source.checkpoint, source.rows, outcome, bring)

    def batches(
        self,
        name: str,
        rows: int,
        outcome: Outcome,
        bring: Callable[[str | None], tuple[int, str | None]],
    ) -> None:
        """Bring one table, batch by batch, with a checkpoint of that name."""
        self.report.outcomes.append(outcome)
        checkpoints = SourceCheckpoint.objects.using(self.using).filter(pk=name)
        done = 0
        if not self.dry_run:
            checkpoint, is_new = checkpoints.get_or_create(pk=name)
            if not is_new:
                outcome.resumed_after, done = checkpoint.last_key, checkpoint.rows
        last_key = outcome.resumed_after
        read = batch = 1
        with self.progress(rows, outcome.table) as advance:
            advance(min(done, rows))
            while read and not self.stop():
                if batch <= 2 and not self.dry_run:
                    step(OPERATION, ("first_batch", "second_batch")[batch - 1], name)
                with transaction.atomic(using=self.using, durable=True):
                    read, reached = bring(last_key)
                    if read and not self.dry_run:
                        if batch == 2:
                            step(OPERATION, "checkpoint", name)
                        checkpoints.update(
                            last_key=reached, rows=F("rows") + read, updated_at=Now()
                        )
                last_key = reached
                batch += 1
                advance(read)
        if not read and not self.dry_run:
            step(OPERATION, "end_of_table", name)

    @contextmanager
    def progress(self, rows: int, label: str) -> Iterator[Callable[[int], object]]:
        if self.bar is None:
            yield lambda _: None
        else:
            with self.bar(rows, label) as advance:
                yield advance

    # The vector index

    def sets_aside(self, model: str) -> bool:
        """Whether new vectors wait for the index to be built anew: many, beside one in place."""
        state = self.index_state(model)
        if state is None:
            return False
        has_index, indexed_rows, _, _, is_owner = state
        new = sum(
            max(0, source.vectors - documents.stored_vectors(source, using=self.using))
            for source in self.plan.sources
            if source.model == model
        )
        return has_index and is_owner and new > max(FEW, indexed_rows // 3)

    def index_state(self, model: str) -> tuple[bool, int, bool, bool, bool] | None:
        """Whether an index is in place, of how many rows, is planned, lacks vectors that
        were set aside, and may be built by this role; None: there is no such model.
        """
        with connections[self.using].cursor() as cursor:
            cursor.execute(_INDEX_STATE, [model])
            row: tuple[bool, int, bool, bool, bool] | None = cursor.fetchone()
            return row

    def finish(self) -> None:
        """Leave each model with the index it should have, and fresh keyword statistics.

        Told by the database's state, not by what this run did: a run before may have
        been killed just here.
        """
        counted_anew = False
        for model in self.models():
            state = self.index_state(model)
            if state is None:
                continue
            has_index, _, is_planned, lacks_vectors, is_owner = state
            if not lacks_vectors and (has_index or not is_planned):
                continue
            if not is_owner:
                self.report.index[model] = (
                    "not built: that takes the owner of the tables. As the owner:"
                    f" SELECT rebuild_vector_indexes({sql.Literal(model).as_string(None)})"
                )
                continue
            try:
                self.report.index[model] = finish_load(model, using=self.using)
            except RebuildInProgress as error:
                raise RebuildInProgress(
                    error.message,
                    "All rows came; vector searches find the new ones once the index is built."
                    " Run the same again when the other rebuild has ended.",
                ) from error
            counted_anew = True
        if not counted_anew:
            corpora = KeywordCorpus.objects.using(self.using)
            counted = corpora.aggregate(documents=Sum("documents"))["documents"] or 0
            present = SearchDocument.objects.using(self.using).count()
            changed = sum(outcome.brought + outcome.updated for outcome in self.report.outcomes)
            finish_if_large(max(changed, abs(present - counted)), using=self.using)

    # The record

    def record(self, failure: str = "") -> None:
        """Write the run down among the operators' actions."""
        record_action(
            OPERATION,
            ", ".join(outcome.table for outcome in self.report.outcomes),
            done=not failure and not self.report.stopped,
            reason=failure or ("stopped by its operator" if self.report.stopped else ""),
            details={
                "tables": [_summary(outcome) for outcome in self.report.outcomes],
                "models": self.models(),
            },
            using=self.using,
        )


def _summary(outcome: Outcome) -> dict[str, Any]:
    names = ("table", "model", "brought", "updated", "unchanged", "skipped")
    return {name: getattr(outcome, name) for name in names}
