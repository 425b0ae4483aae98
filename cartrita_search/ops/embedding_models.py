"""Embedding models: how each stands, which is the default, what its index stores, its end.

Names are checked first: an unknown one raises `UnknownModel`, and nothing is changed.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from django.core.exceptions import ValidationError
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from psycopg import sql

from ..db import REBUILD_LOCK
from ..errors import (
    IndexPlanRefused,
    InvalidArgument,
    RebuildFailed,
    RebuildInProgress,
    search_errors,
)
from ..models import EmbeddingModel
from . import vector_indexes
from .vector_indexes import require_owner, unknown_model

#: Vectors deleted in one transaction: a kill loses no more than these.
BATCH_SIZE = 5000


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """An embedding model, its vectors, and the vector index in place."""

    name: str
    dimensions: int
    is_default: bool
    #: 'exact', 'hnsw' or 'ivfflat', and 'vector', 'halfvec' or 'bit'.
    index_method: str
    index_storage: str
    #: 'auto', 'vector', 'halfvec' or 'bit': what the next index stores.
    preferred_storage: str
    #: The method of the index that a rebuild would make now.
    planned_method: str
    vectors: int
    #: Vectors of a text that has changed since.
    stale: int
    #: Documents without a vector under this model.
    missing: int
    #: Vectors of a large load, not found before the next rebuild.
    put_aside: int
    #: recall@10 measured after the last rebuild; None: not measured.
    measured_recall: float | None
    target_recall: float
    #: None where no index is in place.
    index_bytes: int | None

    @property
    def shortcomings(self) -> list[str]:
        """What a search under this model lacks, each with the command that mends it."""
        found = []
        name = shlex.quote(self.name)
        if self.missing or self.stale:
            found.append(
                f"{self.missing} documents have no vector under {self.name}, and {self.stale} one"
                f" of an older text. Run: manage.py sync_embeddings --model {name}"
            )
        rebuild = f"Run: manage.py rebuild_vector_indexes --model {name}"
        if self.put_aside:
            found.append(
                f"{self.put_aside} vectors of {self.name} are not found before its index is"
                f" rebuilt. {rebuild}"
            )
        if self.index_method == "exact" != self.planned_method:
            found.append(
                f"{self.name} has no index: every search compares all its vectors. {rebuild}"
            )
        return found


@dataclass(frozen=True, slots=True)
class DropPlan:
    """What goes with a model. Its documents stay."""

    name: str
    indexes: list[str]
    vectors: int


_STATUS = """
    SELECT m.name, m.dimensions, m.is_default, m.index_method, m.index_storage,
        m.preferred_storage, (vector_index_plan(m.name)).method,
        coalesce(sum(s.embeddings), 0)::bigint, coalesce(sum(s.stale), 0)::bigint,
        coalesce(sum(s.missing), 0)::bigint,
        (SELECT count(*) FROM embeddings AS e
         WHERE e.embedding_model = m.name AND e.segment > m.visible_segment),
        m.measured_recall, m.target_recall,
        pg_relation_size(to_regclass(format('public.%%I', vector_index_name(m.name))))
    FROM embedding_models AS m
    LEFT JOIN vector_search_stats AS s ON s.embedding_model = m.name
    WHERE %(name)s::text IS NULL OR m.name = %(name)s
    GROUP BY m.name
    ORDER BY m.name
"""


def statuses(*, using: str = DEFAULT_DB_ALIAS) -> list[ModelStatus]:
    """Every model, by name. Reads the tables of documents and vectors in full."""
    with search_errors(), connections[using].cursor() as cursor:
        cursor.execute(_STATUS, {"name": None})
        return [ModelStatus(*row) for row in cursor.fetchall()]


def status(name: str, *, using: str = DEFAULT_DB_ALIAS) -> ModelStatus:
    """One model, as `statuses` has it."""
    with search_errors(), connections[using].cursor() as cursor:
        cursor.execute(_STATUS, {"name": name})
        row = cursor.fetchone()
    if row is None:
        raise unknown_model(name, using)
    return ModelStatus(*row)


def make_default(name: str, *, using: str = DEFAULT_DB_ALIAS) -> None:
    """Let this model answer searches that name none.

    At once for all: a search goes by the former default or by the new one, never by
    none. Neither searches nor writers of vectors wait. Of several who choose at the
    same time the last one wins.
    """
    models = EmbeddingModel.objects.using(using)
    with transaction.atomic(using=using):
        # Who chooses at the same time queues here; a writer's foreign key does not.
        locked = models.select_for_update(no_key=True).order_by("pk")
        if name not in [model.pk for model in locked]:
            raise unknown_model(name, using)
        # Two statements: the index that allows one default is checked row by row.
        models.filter(is_default=True).exclude(pk=name).update(is_default=False)
        models.filter(pk=name, is_default=False).update(is_default=True)


def prefer_storage(name: str, storage: str, *, using: str = DEFAULT_DB_ALIAS) -> None:
    """What the model's next index stores: 'auto', 'vector', 'halfvec' or 'bit'.

    The index in place serves until the next rebuild. Raises `IndexPlanRefused` for a
    storage that cannot index vectors of the model's dimension.
    """
    model = EmbeddingModel.objects.using(using).filter(pk=name).first()
    if model is None:
        raise unknown_model(name, using)
    model.preferred_storage = storage
    try:
        model.clean_fields(exclude={f.name for f in model._meta.fields} - {"preferred_storage"})
        model.clean()
    except ValidationError as error:
        raise IndexPlanRefused(" ".join(error.messages), "Nothing was changed.") from error
    model.save(using=using, update_fields=["preferred_storage"])


def rebuild(name: str, *, using: str = DEFAULT_DB_ALIAS) -> str:
    """Build, measure and swap in the index that the model's plan calls for.

    Searches and writers go on: see `vector_indexes.rebuild`. Returns the report. Raises
    `RebuildFailed` where the target recall is not reached; the index in place then stays.
    """
    report = vector_indexes.rebuild([name], using=using)
    for outcome in report.missed:
        raise RebuildFailed(" ".join(outcome.notes))
    return "\n".join(str(outcome) for outcome in report.outcomes)


_DROP_PLAN = """
    SELECT m.is_default, (SELECT count(*) FROM embeddings AS e WHERE e.embedding_model = m.name)
    FROM embedding_models AS m
    WHERE m.name = %s
"""
#: Invalid ones too, and what a rebuild left behind.
_INDEXES = """
    SELECT c.relname::text FROM pg_class AS c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'i' AND c.relname IN (
        vector_index_name(%(name)s), vector_index_name(%(name)s) || '__new',
        vector_index_name(%(name)s) || '__old')
    ORDER BY 1
"""
#: Rows that another transaction holds are passed over: waiting for them, in an order
#: that is not theirs, could be a deadlock.
_DELETE_BATCH = """
    DELETE FROM embeddings AS e WHERE e.ctid = ANY (ARRAY(
        SELECT x.ctid FROM embeddings AS x WHERE x.embedding_model = %s
        LIMIT %s FOR UPDATE SKIP LOCKED
    ))
"""
#: Waits for the holder of one row, holding nothing itself.
_DELETE_HELD = """
    DELETE FROM embeddings AS e WHERE e.id = (
        SELECT x.id FROM embeddings AS x WHERE x.embedding_model = %s LIMIT 1
    )
"""

_BECAME_DEFAULT = "It became so meanwhile: its index and the vectors deleted by then are gone."


def drop_plan(name: str, *, using: str = DEFAULT_DB_ALIAS) -> DropPlan:
    """What `drop` would delete. Raises the `SearchError` with which it would refuse."""
    with search_errors(), connections[using].cursor() as cursor:
        cursor.execute(_DROP_PLAN, [name])
        row = cursor.fetchone()
        if row is None:
            raise unknown_model(name, using)
        is_default, vectors = row
        if is_default:
            raise _refuse_default(name, using)
        require_owner(using)
        return DropPlan(name, _indexes(name, using), vectors)


def drop(
    name: str,
    *,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int], object] | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> DropPlan:
    """Delete a model with its index and its vectors; returns what was deleted.

    Its documents stay, and neither searches nor writers under other models wait.
    Not within a transaction, for it is many: wherever it is interrupted, calling it
    again finishes it, and the model can be searched, with fewer vectors, until then.
    ``progress`` is called with the number of vectors of each finished batch.

    Refuses the default model (`InvalidArgument`), also one that becomes it meanwhile.
    Raises `RebuildInProgress` where indexes are being rebuilt.
    """
    with transaction.atomic(using=using, durable=True):
        _hold_off_rebuilds(using)
        plan = drop_plan(name, using=using)
        # From here on its searches compare all vectors, and do not expect the index.
        found = EmbeddingModel.objects.using(using).filter(pk=name, is_default=False)
        if not found.update(
            index_method="exact",
            index_storage="vector",
            hnsw_m=None,
            hnsw_ef_construction=None,
            ivfflat_lists=None,
            ef_search=None,
            probes=None,
            measured_recall=None,
        ):
            raise _refuse_default(name, using)
    indexes: list[str] = []
    vectors = 0
    done = False
    while not done:
        indexes += _drop_indexes(name, using)
        for deleted in _delete_vectors(name, batch_size, using):
            vectors += deleted
            if progress is not None:
                progress(deleted)
        # A rebuild in between has made another.
        indexes += _drop_indexes(name, using)
        done = _delete_row(name, using)
    return DropPlan(name, sorted({*plan.indexes, *indexes}), vectors)


def _refuse_default(
    name: str, using: str, changed: str = "Nothing was changed."
) -> InvalidArgument:
    others = EmbeddingModel.objects.using(using).exclude(pk=name).values_list("pk", flat=True)
    remedy = (
        "Make another the default first: manage.py embedding_models default NAME"
        f" ({', '.join(others)})"
        if others
        else "It is the only one: store vectors under another first."
    )
    return InvalidArgument(
        f'"{name}" is the default embedding model and stays.', f"{changed} {remedy}"
    )


def _indexes(name: str, using: str) -> list[str]:
    with connections[using].cursor() as cursor:
        cursor.execute(_INDEXES, {"name": name})
        return [index for (index,) in cursor.fetchall()]


def _drop_indexes(name: str, using: str) -> list[str]:
    """Drop the model's indexes without keeping anybody waiting; returns their names."""
    indexes = _indexes(name, using)
    with connections[using].cursor() as cursor:
        for index in indexes:
            cursor.execute(
                sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(
                    sql.Identifier("public", index)
                )
            )
    return indexes


def _delete_vectors(name: str, batch_size: int, using: str) -> Iterator[int]:
    """Delete the model's vectors, a transaction for each batch; yields how many."""
    while True:
        with transaction.atomic(using=using, durable=True), connections[using].cursor() as cursor:
            cursor.execute(_DELETE_BATCH, [name, batch_size])
            deleted = int(cursor.rowcount)
            if not deleted:
                cursor.execute(_DELETE_HELD, [name])
                deleted = int(cursor.rowcount)
            # Locked after the vectors, in the order of a rebuild.
            cursor.execute(
                "SELECT is_default FROM embedding_models WHERE name = %s FOR SHARE", [name]
            )
            if cursor.fetchone() == (True,):
                raise _refuse_default(name, using, _BECAME_DEFAULT)
        if not deleted:
            return
        yield deleted


def _delete_row(name: str, using: str) -> bool:
    """Delete the model's row, unless it has a vector or an index again; tells whether.

    It waits for writers under this model, and holds none of their rows meanwhile.
    """
    with transaction.atomic(using=using, durable=True), connections[using].cursor() as cursor:
        _hold_off_rebuilds(using)
        cursor.execute(
            "SELECT is_default FROM embedding_models WHERE name = %s FOR UPDATE", [name]
        )
        if cursor.fetchone() == (True,):
            raise _refuse_default(name, using, _BECAME_DEFAULT)
        cursor.execute("SELECT EXISTS (SELECT FROM embeddings WHERE embedding_model = %s)", [name])
        if cursor.fetchone() == (True,) or _indexes(name, using):
            return False
        # What else is kept by model goes with it, by its foreign key.
        cursor.execute("DELETE FROM embedding_models WHERE name = %s", [name])
        return True


def _hold_off_rebuilds(using: str) -> None:
    """Hold the lock of rebuild_vector_indexes() until the transaction ends."""
    with connections[using].cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [REBUILD_LOCK])
        if cursor.fetchone() == (False,):
            raise RebuildInProgress(
                "Another session is rebuilding vector indexes, or dropping a model.",
                "Run this again when it has finished: it goes on where it stopped.",
            )
