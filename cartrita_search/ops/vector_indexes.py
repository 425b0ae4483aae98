"""Vector indexes: how each stands, and rebuilding them while searches and writers go on.

What index a model should have, and why, is decided in SQL (`vector_index_plan`); so are
the statement that builds it, its measuring and the swap (``sql/vector_indexes/``). Here is
the order of those steps around ``CREATE INDEX CONCURRENTLY``, which no function can run:

    build <index>__new, measure and tune it, and in one transaction rename the index in
    place to <index>__old and the new one to its name; drop the former.

Searches do not use the new index before the swap, nor the former one after it. All
state is in the catalog: a run that was killed anywhere is finished, or cleared away, by
the next.
"""

from __future__ import annotations

import random
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, LiteralString, TypeVar

import psycopg
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections
from django.template.defaultfilters import filesizeformat
from psycopg import sql
from psycopg.rows import dict_row

from .. import ingest
from ..db import REBUILD_LOCK, LockHolder, advisory_lock, direct_connection, missing_requirement
from ..errors import (
    BY_CODE,
    DatabaseUnreachable,
    IndexPlanRefused,
    InvalidArgument,
    LockHeld,
    PoolerRefused,
    RebuildFailed,
    RebuildInProgress,
    UnknownModel,
    search_errors,
)
from ..models import EmbeddingModel
from .actions import operator, record_action
from .steps import step
from .watch import POLL_SECONDS, Phase, Progress, watched

STEPS = ("check", "clean", "build", "verify", "tune", "swap", "drop", "record", "analyze")

APPLICATION = "cartrita rebuild"

#: Stored vectors that recall is measured by: half choose the width, half are held out.
SAMPLE = 100
#: How soon the server ends a statement whose client is gone.
CLIENT_CHECK = "2s"
#: The swap waits so long for its locks, and tries so often.
SWAP_LOCK_TIMEOUT = "500ms"
SWAP_TRIES = 40
#: How long transactions of before the swap may keep the former index, in seconds.
DROP_SECONDS = 60.0
#: The same for one that was not finished, when somebody waits for the end.
INTERRUPTED_SECONDS = 5.0

_SIZE = re.compile(r"[1-9]\d*\s*(kB|MB|GB|TB)")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at, not written to


@dataclass(frozen=True, slots=True)
class IndexStatus:
    """A model's vector index, in place and planned: a row of `vector_index_status`."""

    model: str
    dimensions: int
    #: 'exact', 'hnsw' or 'ivfflat', and 'vector', 'halfvec' or 'bit', as planned now.
    planned_method: str
    planned_storage: str
    plan_reason: str
    #: None where there is none.
    index_name: str | None
    #: What is in place; 'exact' where there is no index.
    index_method: str
    index_storage: str
    #: As in "m=16,ef_construction=64".
    parameters: str | None
    is_valid: bool | None
    size_bytes: int | None
    row_count: int
    indexed_rows: int | None
    #: Vectors more (or fewer) than it was built on.
    rows_since_build: int | None
    #: recall@10, in [0, 1].
    measured_recall: float | None
    target_recall: float
    ef_search: int | None
    probes: int | None
    built_at: datetime | None
    built_by: str | None
    #: Why ``rebuild_vector_indexes --if-needed`` would rebuild it.
    needs: list[str]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a rebuild is asked for beyond the plan; each None (or 'auto') leaves it to that."""

    #: 'auto', 'exact', 'hnsw' or 'ivfflat'.
    method: str = "auto"
    #: 'auto', 'vector', 'halfvec' or 'bit'.
    storage: str = "auto"
    m: int | None = None
    ef_construction: int | None = None
    lists: int | None = None
    #: In (0, 1]; stored with the model once an index has reached it.
    target_recall: float | None = None
    #: With its unit: '2GB'. The budget of the plan, and of the session that builds.
    maintenance_work_mem: str | None = None
    parallel_workers: int | None = None

    def __post_init__(self) -> None:
        if self.maintenance_work_mem is not None and not _SIZE.fullmatch(
            self.maintenance_work_mem
        ):
            raise InvalidArgument(
                f"{self.maintenance_work_mem!r} is no amount of memory.",
                "Nothing was changed. Write it with its unit, like 2GB or 512MB.",
            )
        if self.target_recall is not None and not 0 < self.target_recall <= 1:
            raise InvalidArgument(
                f"A target recall is above 0 and at most 1, not {self.target_recall}.",
                "Nothing was changed.",
            )
        if self.parallel_workers is not None and not 0 <= self.parallel_workers <= 1024:
            raise InvalidArgument(
                f"Parallel workers are 0 to 1024, not {self.parallel_workers}.",
                "Nothing was changed.",
            )
        for name in ("m", "ef_construction", "lists"):
            if not abs(getattr(self, name) or 0) < 2**31:
                raise InvalidArgument(
                    f"{name} cannot be {getattr(self, name)}.", "Nothing was changed."
                )
        ignored = {
            "hnsw": {"lists": self.lists},
            "ivfflat": {"m": self.m, "ef_construction": self.ef_construction},
            "exact": {"lists": self.lists, "m": self.m, "ef_construction": self.ef_construction},
        }.get(self.method, {})
        for name, value in ignored.items():
            if value is not None:
                raise InvalidArgument(
                    f"{name} is no parameter of the method {self.method}.", "Nothing was changed."
                )


@dataclass(frozen=True, slots=True)
class Plan:
    """The index that a model should have: a row of `vector_index_plan`."""

    model_name: str
    method: str
    storage: str
    m: int | None
    ef_construction: int | None
    lists: int | None
    dimensions: int
    row_count: int
    #: Of the index in bytes; for HNSW also the memory that building it takes.
    estimated_bytes: int
    budget_bytes: int
    reason: str

    def __str__(self) -> str:
        if self.method == "exact":
            return "exact scan, no index"
        if self.method == "hnsw":
            parameters = f"m {self.m}, ef_construction {self.ef_construction}"
        else:
            parameters = f"{self.lists} lists"
        name = EmbeddingModel.IndexMethod(self.method).label
        return f"{name} on {self.storage}, {parameters}"


@dataclass(slots=True)
class Outcome:
    """What became of one model's index."""

    plan: Plan
    #: 'rebuilt', 'up to date', 'target missed' or, of a dry run, 'would be rebuilt'.
    outcome: str
    #: Why it was (or would be) rebuilt.
    reasons: list[str] = field(default_factory=list)
    #: An index that an earlier run had built was put in place.
    resumed: bool = False
    #: recall@10 of the held-out half of the sample, or of the index in place where that is
    #: what was measured; None: not measured.
    recall: float | None = None
    target: float | None = None
    #: ef_search or probes, as tuned.
    width: int | None = None
    size_bytes: int | None = None
    seconds: float = 0.0
    #: What an operator should know besides.
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        plan = self.plan
        said = f"{plan.model_name}: {'' if self.outcome == 'rebuilt' else f'{self.outcome}: '}"
        said += f"{plan}; {plan.row_count} vectors"
        if self.width is not None:
            recall = "not measured" if self.recall is None else f"{self.recall:.3f}"
            width = "ef_search" if plan.method == "hnsw" else "probes"
            said += f"; recall@10 {recall} at {width} {self.width} (target {self.target})"
        if self.size_bytes is not None:
            said += f"; {filesizeformat(self.size_bytes)}, {self.seconds:.1f} s"
        return f"{said}. {plan.reason}"


@dataclass(slots=True)
class RebuildReport:
    """What a rebuild did, model by model."""

    outcomes: list[Outcome] = field(default_factory=list)
    #: A signal ended it: models that are not listed are as they were.
    interrupted: bool = False

    @property
    def missed(self) -> list[Outcome]:
        """Models whose new index could not be tuned to the target, and was dropped."""
        return [outcome for outcome in self.outcomes if outcome.outcome == "target missed"]


Say = Callable[[str], object]

# --- Status and plans -------------------------------------------------------


def statuses(*, models: Sequence[str] = (), using: str = DEFAULT_DB_ALIAS) -> list[IndexStatus]:
    """Each model's vector index (none named: every one), by model.

    Raises `UnknownModel`, and `NotMigrated` before the migrations.
    """
    if models:
        return [status(name, using=using) for name in _names(models, using)]
    with search_errors(), connections[using].cursor() as cursor:
        cursor.execute("SELECT * FROM vector_index_status()")
        return [IndexStatus(*row) for row in cursor.fetchall()]


def status(name: str, *, using: str = DEFAULT_DB_ALIAS) -> IndexStatus:
    """One model's. Raises `UnknownModel`."""
    with search_errors(), connections[using].cursor() as cursor:
        cursor.execute("SELECT * FROM vector_index_status(%s)", [name])
        row = cursor.fetchone()
    if row is None:
        raise unknown_model(name, using)
    return IndexStatus(*row)


_PLAN = """
    SELECT p::text, p.* FROM vector_index_plan(
        %(name)s, %(method)s, %(storage)s, m => %(m)s, ef_construction => %(ef_construction)s,
        lists => %(lists)s, budget_bytes => pg_size_bytes(%(maintenance_work_mem)s)) AS p
"""


def plans(
    models: Sequence[str] = (), *, wishes: Wishes | None = None, using: str = DEFAULT_DB_ALIAS
) -> list[Plan]:
    """The index that each model (none named: every one) should have.

    Raises `UnknownModel`, and `IndexPlanRefused` for what cannot be built.
    """
    with search_errors(), connections[using].cursor() as cursor:
        found = []
        for name in _names(models, using):
            cursor.execute(_PLAN, asdict(wishes or Wishes()) | {"name": name})
            found.append(Plan(*cursor.fetchone()[1:]))
        return found


def _names(models: Sequence[str], using: str) -> list[str]:
    names = list(EmbeddingModel.objects.using(using).order_by("pk").values_list("pk", flat=True))
    for name in models:
        if name not in names:
            raise unknown_model(name, using)
    return sorted(set(models)) or names


def unknown_model(name: str, using: str) -> UnknownModel:
    """The refusal of a model that is not registered, naming those that are."""
    names = list(EmbeddingModel.objects.using(using).values_list("pk", flat=True))
    known = f"There are: {', '.join(names)}." if names else "None is registered yet."
    return UnknownModel(f'There is no embedding model "{name}".', f"Nothing was changed. {known}")


def require_owner(using: str) -> None:
    """Raise `InvalidArgument` unless this role may build and drop the tables' indexes."""
    with search_errors(), connections[using].cursor() as cursor:
        cursor.execute(
            "SELECT pg_has_role(c.relowner, 'USAGE') FROM pg_class AS c "
            "WHERE c.oid = 'public.embeddings'::regclass"
        )
        if cursor.fetchone() == (False,):
            raise InvalidArgument(
                "Only the owner of the table embeddings can build and drop its indexes.",
                "No index and no vector was changed. Connect as the role that migrates.",
            )


# --- Rebuilding -------------------------------------------------------------


def rebuild(
    models: Sequence[str] = (),
    *,
    wishes: Wishes | None = None,
    if_needed: bool = False,
    dry_run: bool = False,
    concurrently: bool = True,
    take_missed: bool = False,
    wait: float = 30.0,
    stop: threading.Event | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> RebuildReport:
    """Build, measure and swap in the index of each model (none named: every one).

    Searches and writers go on throughout; with ``concurrently=False`` writers wait while
    the index is built, which is somewhat faster. An index whose recall@10 cannot be tuned
    to the target is dropped again, and the one in place goes on serving; so it does
    wherever this fails or is killed. With ``take_missed`` it is taken all the same.

    With ``if_needed`` only models that need it: see `vector_index_needs`; the recall of
    the index in place is measured for that.

    ``stop``, once set, ends it at the next safe point; a build is cancelled.
    ``wait`` seconds at most for another rebuild, or for one still running on the server.

    Raises, before anything is changed: `UnknownModel`, `IndexPlanRefused` (also where disk
    or shared memory do not suffice), `LockHeld`, `DatabaseUnreachable`, `PoolerRefused`,
    `InvalidArgument` (not the owner). Later: `RebuildFailed`.
    """
    if connections[using].in_atomic_block:
        raise InvalidArgument(
            "Rebuilding beside searches takes many transactions, and cannot be part of one.",
            "Nothing was changed. Within a transaction: SELECT rebuild_vector_indexes().",
        )
    names = _names(models, using)
    require_owner(using)
    missing = missing_requirement(connections[using])
    if missing is not None:
        raise IndexPlanRefused(missing.problem, f"Nothing was changed. {missing.remedy}")
    with (
        direct_connection(APPLICATION, using=using) as builder,
        direct_connection(APPLICATION, using=using) as watcher,
    ):
        work = _Rebuild(
            builder=builder,
            watcher=watcher,
            wishes=wishes or Wishes(),
            if_needed=if_needed,
            concurrently=concurrently,
            take_missed=take_missed,
            wait=wait,
            stop=stop or threading.Event(),
            progress=progress or (lambda _: None),
            say=say or (lambda _: None),
            using=using,
        )
        with work.readable_errors():
            work.prepare()
            if dry_run:
                return work.dry_run(names)
            return work.run(names)


def finish_load(model: str | None = None, *, using: str = DEFAULT_DB_ALIAS) -> str:
    """`ingest.finish_load`, but searches and other writers go on while the index is built.

    Where that cannot be, within a transaction or where only a pooler can be reached, it
    is that one itself.
    """
    if model is None or connections[using].in_atomic_block:
        return ingest.finish_load(model, using=using)
    try:
        report = rebuild([model], take_missed=True, wait=0, using=using)
    except LockHeld as error:
        raise RebuildInProgress(error.message, error.hint) from error
    except (PoolerRefused, DatabaseUnreachable):
        return ingest.finish_load(model, using=using)
    ingest.finish_load(using=using)  # the keyword statistics
    return "\n".join(f"{outcome} {' '.join(outcome.notes)}".strip() for outcome in report.outcomes)


class _Interrupted(Exception):
    """The caller's ``stop`` was set."""


Result = TypeVar("Result")

_SETTINGS = {
    # A role's or database's own limits are for searches; this waits for whoever is older.
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "jit": "off",
}

_CHECKED = """
    SELECT pg_size_bytes(current_setting('maintenance_work_mem')) AS memory,
        current_setting('max_parallel_maintenance_workers')::integer AS workers,
        current_setting('dynamic_shared_memory_type') AS shared_memory_type,
        coalesce(
            nullif(pg_tablespace_location(d.dattablespace), ''),
            (SELECT s.setting FROM pg_settings AS s WHERE s.name = 'data_directory')
        ) AS folder
    FROM pg_database AS d WHERE d.datname = current_database()
"""

_PROGRESS = """
    SELECT p.phase, p.tuples_done, p.tuples_total, p.blocks_done, p.blocks_total,
        p.lockers_done, p.lockers_total, p.current_locker_pid
    FROM pg_stat_progress_create_index AS p WHERE p.pid = %s
"""

#: A build has no progress before it has its lock of the table.
_BLOCKED_BY = "SELECT (pg_blocking_pids(%s))[1]"

#: Of other roles' builds only the process is shown: any may be the one.
_BUILDING = """
    SELECT p.pid FROM pg_stat_progress_create_index AS p
    WHERE p.datname = current_database() AND p.pid <> %s
      AND coalesce(p.relid, 'public.embeddings'::regclass) = 'public.embeddings'::regclass
      AND coalesce(p.index_relid, 0) IN (0, %s)
    LIMIT 1
"""

#: Transactions that may be searching, or are about to: they have looked a model up.
_READERS = """
    SELECT DISTINCT l.virtualtransaction, l.pid FROM pg_locks AS l
    WHERE l.relation IN ('public.embeddings'::regclass, 'public.embedding_models'::regclass)
      AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
      AND l.mode = 'AccessShareLock' AND l.pid NOT IN (%s, %s)
"""

_TUNE = """
    SELECT r::text, r.measured_recall, r.target_recall, coalesce(r.ef_search, r.probes)
    FROM tune_vector_index(
        %(plan)s::vector_index_choice, %(index)s,
        CASE %(method)s WHEN 'exact' THEN '[]' ELSE vector_recall_sample(%(name)s, %(size)s) END,
        %(target)s) AS r
"""

_MEASURE = """
    SELECT vector_recall(m, vector_recall_sample(m.name, %s)), m.target_recall
    FROM embedding_models AS m WHERE m.name = %s
"""


@dataclass(kw_only=True)
class _Rebuild:
    """One run, on a connection that builds and holds the lock, and one that watches it."""

    builder: psycopg.Connection
    watcher: psycopg.Connection
    wishes: Wishes
    if_needed: bool
    concurrently: bool
    take_missed: bool
    wait: float
    stop: threading.Event
    progress: Progress
    say: Say
    using: str

    @contextmanager
    def readable_errors(self) -> Iterator[None]:
        """Turn the database's errors into ours."""
        try:
            # Django's connection, which keeps the records, as well.
            with connections[self.using].wrap_database_errors:
                yield
        except DatabaseError as wrapped:
            error = wrapped.__cause__
            if not isinstance(error, psycopg.Error):
                raise
            message = error.diag.message_primary or str(error)
            hint = (
                "The index in place goes on serving. The next rebuild finishes, or clears"
                " away, what was left."
            )
            kind = BY_CODE.get(error.sqlstate or "")
            if kind is not None:
                raise kind(message, error.diag.message_hint or "") from error
            if self.builder.broken or self.watcher.broken:
                message = f"The connection to the server was lost: {message}"
            elif (error.sqlstate or "").startswith("53"):
                hint = (
                    "The server ran out of disk, memory or shared memory. --parallel-workers 0"
                    f" needs no shared memory. {hint}"
                )
            raise RebuildFailed(f"{message.strip().rstrip('.')}.", hint) from error

    # The parts of a run

    def prepare(self) -> None:
        """The session's settings: no limits of time, memory as asked for."""
        wanted = dict(_SETTINGS)
        if self.wishes.parallel_workers is not None:
            wanted["max_parallel_maintenance_workers"] = str(self.wishes.parallel_workers)
        memory = self.wishes.maintenance_work_mem
        if memory is None:
            budget = self._one("SELECT index_memory_budget_mb FROM search_settings")
            memory = f"{budget}MB" if budget else None
        if memory is not None:
            wanted["maintenance_work_mem"] = memory.replace(" ", "")
        try:
            for name, value in wanted.items():
                self._one("SELECT set_config(%s, %s, false)", name, value)
        except psycopg.errors.InvalidParameterValue as error:
            raise InvalidArgument(
                f"The server refuses it: {error.diag.message_primary}.", "Nothing was changed."
            ) from error
        # Not every operating system can tell that a client is gone.
        with suppress(psycopg.errors.InvalidParameterValue):
            self._one(
                "SELECT set_config('client_connection_check_interval', %s, false)", CLIENT_CHECK
            )

    def dry_run(self, names: Sequence[str]) -> RebuildReport:
        """What `run` would do."""
        report = RebuildReport()
        try:
            for name in names:
                _, outcome = self._plan_outcome(name)
                if outcome.outcome == "rebuilt":
                    outcome.outcome = "would be rebuilt"
                report.outcomes.append(outcome)
        except _Interrupted:
            report.interrupted = True
        return report

    def run(self, names: Sequence[str]) -> RebuildReport:
        """Model by model; what is finished stays."""
        report = RebuildReport()
        try:
            with self._lock():
                self._rebuild(names, report)
        except _Interrupted:
            report.interrupted = True
        return report

    def _rebuild(self, names: Sequence[str], report: RebuildReport) -> None:
        try:
            # All refusals come before the first change.
            for row, outcome in [self._plan_outcome(name) for name in names]:
                self._model(row, outcome)
                report.outcomes.append(outcome)
        finally:
            rebuilt = any(outcome.outcome == "rebuilt" for outcome in report.outcomes)
            if rebuilt and not self.builder.closed:
                self._analyze()

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the lock of rebuilds. Raises `LockHeld`, or `_Interrupted` while waiting."""
        deadline = time.monotonic() + self.wait
        told: set[int] = set()

        def tell(holder: LockHolder | None) -> None:
            if holder is not None and holder.pid not in told:
                told.add(holder.pid)
                self.say(f"Waiting up to {self.wait:g} s for {holder}.")

        with ExitStack() as stack:
            while True:
                left = max(0.0, deadline - time.monotonic())
                try:
                    stack.enter_context(
                        advisory_lock(
                            self.builder,
                            REBUILD_LOCK,
                            wait=min(1.0, left),
                            waiting=tell if left else None,
                        )
                    )
                    break
                except LockHeld:
                    if self.stop.is_set():
                        raise _Interrupted from None
                    if not left:
                        raise
            yield

    def _analyze(self) -> None:
        step("rebuild", "analyze")
        self.progress(Phase("vacuuming and analyzing embeddings"))
        # A new index has no statistics of its expression yet, and after a large load
        # the visibility map is empty.
        self.builder.execute("VACUUM (ANALYZE) public.embeddings")

    def _plan_outcome(self, name: str) -> tuple[str, Outcome]:
        """The plan as a row, and what is to be done. Raises `IndexPlanRefused`."""
        self._step("check", name)
        row, plan = self._plan(name)
        outcome = Outcome(plan, "rebuilt", self._needs(row))
        if self.if_needed and not outcome.reasons:
            outcome.reasons = self._fallen_recall(outcome)
            if not outcome.reasons:
                outcome.outcome = "up to date"
                return row, outcome
        outcome.notes = self._check(plan)
        return row, outcome

    def _model(self, row: str, outcome: Outcome) -> None:
        started = time.monotonic()
        plan = outcome.plan
        name = plan.model_name
        self._step("clean", name)
        outcome.resumed = self._clean(outcome)
        if outcome.recall is not None:
            self.builder.execute(
                "UPDATE embedding_models SET measured_recall = %s WHERE name = %s",
                [outcome.recall, name],
            )
        if outcome.outcome == "up to date":
            return
        try:
            if plan.method != "exact" and not outcome.resumed:
                self._build(row, plan)
            tuned = self._tune(row, outcome)
            if outcome.outcome == "target missed":
                self._record(outcome)
                return
            self._step("swap", name)
        except _Interrupted:
            for note in self._drop(self._index(name, "__new"), INTERRUPTED_SECONDS):
                self.say(note)
            raise
        self._swap(name, tuned)
        # From here on it is finished, whatever signals say.
        step("rebuild", "drop", name)
        self.progress(Phase(f"{name}: dropping the former index"))
        outcome.notes += self._retire(self._index(name, "__old"))
        outcome.size_bytes = (self._facts(name) or {}).get("size_bytes")
        outcome.seconds = time.monotonic() - started
        self._record(outcome)

    def _check(self, plan: Plan) -> list[str]:
        """What the server's means say to the plan. Raises `IndexPlanRefused`."""
        notes: list[str] = []
        if plan.method == "exact":
            return notes
        with self.builder.cursor(row_factory=dict_row) as cursor:
            found = cursor.execute(_CHECKED).fetchone() or {}
        size = filesizeformat(plan.estimated_bytes)
        name = plan.model_name
        # Only a socket in the file system says that the server is on this machine.
        is_local = self.builder.info.host.startswith("/")
        folder = Path(found["folder"] or "") if is_local and found["folder"] else None
        if folder is None or not folder.exists():
            notes.append(
                f"The server's free disk space cannot be seen from here: the index of {name} will"
                f" take about {size}, beside the one in place."
            )
        elif (free := shutil.disk_usage(folder).free) < plan.estimated_bytes:
            raise IndexPlanRefused(
                f"The index of {name} will take about {size}, and {folder} has"
                f" {filesizeformat(free)} free.",
                "Nothing was changed. Make room, or choose a smaller storage.",
            )
        if plan.method != "hnsw":
            return notes
        memory = filesizeformat(found["memory"])
        if plan.estimated_bytes > found["memory"]:
            notes.append(
                f"The graph of {name} will take about {size}, more than maintenance_work_mem"
                f" ({memory}): what does not fit is built many times more slowly. If the server"
                f" has it, say --maintenance-work-mem {plan.estimated_bytes // 2**20 + 1}MB."
            )
        # pgvector shares all of maintenance_work_mem among the workers of a build.
        if (
            found["workers"]
            and is_local
            and found["shared_memory_type"] == "posix"
            and _SHARED_MEMORY.is_dir()
            and (free := shutil.disk_usage(_SHARED_MEMORY).free) < found["memory"]
        ):
            problem = (
                f"{_SHARED_MEMORY} has {filesizeformat(free)} free; parallel workers need"
                f" maintenance_work_mem ({memory}) of it."
            )
            if self.wishes.parallel_workers:
                raise IndexPlanRefused(
                    problem,
                    "Nothing was changed. Say --parallel-workers 0, or give the server's container"
                    " more (docker run --shm-size).",
                )
            self._one("SELECT set_config('max_parallel_maintenance_workers', '0', false)")
            notes.append(f"{problem} Building without workers.")
        return notes

    def _clean(self, outcome: Outcome) -> bool:
        """Clear away what another run left; whether its new index can be put in place."""
        name = outcome.plan.model_name
        if self._facts(name, "__old"):
            self._refuse_notes(self._retire(self._index(name, "__old")))
        found = self._facts(name, "__new")
        if not found:
            return False
        self._await_build(found["index_oid"], found["index_name"])
        found = self._facts(name, "__new")
        if found and outcome.outcome == "rebuilt" and self._is_as_planned(found, outcome.plan):
            return True
        self._refuse_notes(self._drop(self._index(name, "__new")))
        return False

    def _is_as_planned(self, found: dict[str, Any], plan: Plan) -> bool:
        visible = self._one(
            "SELECT visible_segment FROM embedding_models WHERE name = %s", plan.model_name
        )
        options = (
            {f"m={plan.m}", f"ef_construction={plan.ef_construction}"}
            if plan.method == "hnsw"
            else {f"lists={plan.lists}"}
        )
        return bool(
            found["is_valid"]
            and found["of_model"]
            and found["segment"] == visible + 1
            and (found["method"], found["storage"], found["dimensions"])
            == (plan.method, plan.storage, plan.dimensions)
            and set(found["options"]) == options
        )

    def _build(self, row: str, plan: Plan) -> None:
        name = plan.model_name
        index = self._index(name, "__new")
        statement: LiteralString = self._one(
            "SELECT vector_index_sql(%s::vector_index_choice, %s, %s, true)",
            row,
            index,
            self.concurrently,
        )
        self._step("build", name)
        try:
            self._watched(f"{name}: ", lambda: self.builder.execute(statement))
            self._step("verify", name)
        except psycopg.Error:
            if not self.builder.broken:
                self._drop(index)
            raise
        if not (self._facts(name, "__new") or {"is_valid": False})["is_valid"]:
            self._drop(index)
            raise RebuildFailed(
                f"The index {index} came out invalid.",
                "It was dropped, and the index in place goes on serving. Run this again.",
            )

    def _tune(self, row: str, outcome: Outcome) -> str:
        """Measure the new index, and choose the search width; the row to swap in."""
        plan = outcome.plan
        name = plan.model_name
        index = self._index(name, "__new")
        parameters = {
            "plan": row,
            "index": index,
            "name": name,
            "method": plan.method,
            "size": SAMPLE,
            "target": self.wishes.target_recall,
        }

        def tune() -> tuple[Any, ...] | None:
            # One snapshot for the truth and what is measured by it: writers go on.
            with self.builder.transaction():
                self.builder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                return self.builder.execute(_TUNE, parameters).fetchone()

        self._step("tune", name)
        found = self._watched(f"{name}: measuring recall", tune)
        tuned, outcome.recall, outcome.target, outcome.width = found or (None,) * 4
        if plan.method != "exact" and outcome.recall is None and plan.row_count > 10:
            outcome.notes.append(
                f"The recall of {name} could not be measured before the swap, because of an index"
                " of an older release. Run this again with --if-needed."
            )
        if outcome.recall is None or outcome.recall >= (outcome.target or 0):
            return str(tuned)
        if self.take_missed:
            outcome.notes.append(f"The target recall of {name} was NOT reached.")
        else:
            outcome.outcome = "target missed"
            outcome.notes += [
                f"The index of {name} reaches recall@10 {outcome.recall:.3f} at most, below the"
                f" target {outcome.target}: it was dropped, and what was in place goes on serving."
                " Try --storage halfvec or vector, a larger --m and --ef-construction, or a lower"
                " --target-recall.",
                *self._drop(index),
            ]
        return str(tuned)

    def _swap(self, name: str, tuned: str) -> None:
        for left in reversed(range(SWAP_TRIES)):
            try:
                with self.builder.transaction():
                    self._one("SELECT set_config('lock_timeout', %s, true)", SWAP_LOCK_TIMEOUT)
                    self.builder.execute(
                        "SELECT swap_vector_index(%s::embedding_models, %s)", [tuned, operator()]
                    )
                break
            except psycopg.errors.LockNotAvailable as error:
                self.progress(Phase(f"{name}: waiting for the lock of the swap"))
                if not left:
                    raise LockHeld(
                        f"The new index of {name} is built, but somebody's transaction kept the"
                        " locks that putting it in place takes.",
                        "The index in place goes on serving. Run this again when that has ended:"
                        " it goes on with the new one.",
                    ) from error
                time.sleep(random.uniform(0.05, 0.5))  # noqa: S311 - no secret

    def _record(self, outcome: Outcome) -> None:
        step("rebuild", "record", outcome.plan.model_name)
        record_action(
            "rebuild",
            outcome.plan.model_name,
            done=outcome.outcome == "rebuilt",
            reason=" ".join(outcome.reasons),
            details={
                "index": str(outcome.plan),
                "recall": outcome.recall,
                "seconds": round(outcome.seconds, 1),
            },
            using=self.using,
        )

    # Dropping and waiting

    def _retire(self, index: str) -> list[str]:
        """Drop an index that searches went by until now.

        One that began before the swap may still go by it, and dropping makes an index
        unusable before it waits for those.
        """
        before = dict(self._readers())
        deadline = time.monotonic() + DROP_SECONDS
        while before := {key: pid for key, pid in self._readers() if key in before}:
            if time.monotonic() > deadline:
                return [self._in_use(index, before.values(), DROP_SECONDS)]
            time.sleep(POLL_SECONDS / 5)
        return self._drop(index)

    def _drop(self, index: str, seconds: float | None = None) -> list[str]:
        """Drop an index; notes where it could not be done for transactions that stay."""
        seconds = DROP_SECONDS if seconds is None else seconds
        timeout = str(int(seconds * 1000))
        statement = sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(
            sql.Identifier("public", index)
        )
        self._one("SELECT set_config('lock_timeout', %s, false)", timeout)
        try:
            self.builder.execute(statement)
        except psycopg.errors.LockNotAvailable:
            return [self._in_use(index, [pid for _, pid in self._readers()], seconds)]
        finally:
            if not self.builder.broken:
                self._one("SELECT set_config('lock_timeout', '0', false)")
        return []

    def _in_use(self, index: str, pids: Iterable[int | None], seconds: float) -> str:
        who = ", ".join(str(pid) for pid in sorted({pid or 0 for pid in pids}))
        return (
            f"The index {index} stays for now: a transaction that may use it has been open for"
            f" over {seconds:g} s (pid {who or 'unknown'}). The next run drops it."
        )

    def _refuse_notes(self, notes: list[str]) -> None:
        if notes:
            raise LockHeld(notes[0], "Nothing was changed. End that transaction, or wait for it.")

    def _readers(self) -> list[tuple[str, int]]:
        pids = [self.builder.info.backend_pid, self.watcher.info.backend_pid]
        return self.watcher.execute(_READERS, pids).fetchall()

    def _await_build(self, oid: int, index: str) -> None:
        """Wait for a build of that index which somebody's session is still at."""
        deadline = time.monotonic() + self.wait
        told = False
        while row := self.watcher.execute(
            _BUILDING, [self.builder.info.backend_pid, oid]
        ).fetchone():
            if not told:
                self.say(f"The server is still building {index} (pid {row[0]}): waiting for it.")
                told = True
            if time.monotonic() > deadline:
                raise LockHeld(
                    f"The server is still building {index} (pid {row[0]}).",
                    "Nothing was changed. Run this again when it has finished.",
                )
            if self.stop.wait(POLL_SECONDS):
                raise _Interrupted

    def _watched(self, label: str, work: Callable[[], Result]) -> Result:
        def look() -> None:
            self.progress(self._phase(label))

        try:
            return watched(self.builder, work, stop=self.stop, look=look)
        except psycopg.errors.QueryCanceled as error:
            if self.stop.is_set():
                raise _Interrupted from error
            raise

    def _phase(self, label: str) -> Phase:
        pid = self.builder.info.backend_pid
        row = self.watcher.execute(_PROGRESS, [pid]).fetchone()
        if row is None:
            name = label.rstrip(": ")
            (holder,) = self.watcher.execute(_BLOCKED_BY, [pid]).fetchone() or (None,)
            return Phase(name if holder is None else f"{name}: waiting for a lock (pid {holder})")
        phase, tuples, all_tuples, blocks, all_blocks, lockers, all_lockers, locker = row
        name = f"{label}{phase}"
        if phase.startswith("waiting"):
            who = f" (pid {locker})" if locker else ""
            return Phase(f"{name}{who}", lockers, all_lockers or None, "transactions")
        if all_tuples:
            return Phase(name, tuples, all_tuples, "tuples")
        if all_blocks:
            return Phase(name, blocks, all_blocks, "blocks")
        return Phase(name, tuples, None, "tuples")

    # Small things

    def _step(self, name: str, subject: str) -> None:
        step("rebuild", name, subject)
        if self.stop.is_set():
            raise _Interrupted

    def _one(self, query: LiteralString, *parameters: object) -> Any:
        row = self.builder.execute(query, parameters).fetchone()
        return row[0] if row else None

    def _index(self, model: str, suffix: str) -> str:
        return str(self._one("SELECT vector_index_name(%s) || %s", model, suffix))

    def _facts(self, model: str, suffix: str = "") -> dict[str, Any] | None:
        with self.builder.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(
                "SELECT * FROM vector_index_facts(%s, %s)", [model, suffix]
            ).fetchone()

    def _plan(self, name: str) -> tuple[str, Plan]:
        row = self.builder.execute(_PLAN, asdict(self.wishes) | {"name": name}).fetchone()
        if row is None:
            raise unknown_model(name, self.using)
        return row[0], Plan(*row[1:])

    def _needs(self, row: str) -> list[str]:
        return list(self._one("SELECT vector_index_needs(%s::vector_index_choice)", row))

    def _fallen_recall(self, outcome: Outcome) -> list[str]:
        """Measure the index in place anew."""
        if outcome.plan.method == "exact":
            return []
        name = outcome.plan.model_name
        row = self._watched(
            f"{name}: measuring the index in place",
            lambda: self.builder.execute(_MEASURE, [SAMPLE, name]).fetchone(),
        )
        outcome.recall, target = row or (None, None)
        target = self.wishes.target_recall or target
        if outcome.recall is None or outcome.recall >= target:
            return []
        return [f"Its recall@10 is now {outcome.recall:.3f}, below the target {target}."]
