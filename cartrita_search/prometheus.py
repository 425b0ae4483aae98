"""What Prometheus reads at /metrics: this process's counts, and how the database stands.

`count_search`, `count_dropped`, `count_cache` and `set_breaker` count within the process,
or, where PROMETHEUS_MULTIPROC_DIR names a folder, for all processes that share it. What
is read from the database is read by whichever process is asked.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import psycopg
from django.db import router
from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from .conf import search_settings
from .db import REBUILD_LOCK, lock_holder
from .models import EmbeddingModel
from .watch import Watch

#: Seconds that a scrape waits for the database; Prometheus itself gives up after 10.
PATIENCE = 2.0
#: Counting what is stale reads all documents and vectors: no more than this part of the
#: time is spent on it, however large they are, and it is done again after 15 s at best.
COUNTING_SHARE = 0.01
COUNTING_REST = 15.0

CacheEvent = Literal["hit", "miss", "error"]

_SEARCHES = Histogram(
    "cartrita_search_duration_seconds",
    "Searches by type, from the call to the answer.",
    ["type", "cache_hit"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
_ZERO_HITS = Counter(
    "cartrita_search_zero_hits", "Searches that found nothing, by type.", ["type"]
)
_DROPPED = Counter(
    "cartrita_search_dropped_metrics",
    "Searches without a row in search_performance_metrics: full buffer, or refused rows.",
)
_CACHE = Counter(
    "cartrita_search_cache_events",
    "Looks into the cache of results: hit, miss, error (the search went past Redis).",
    ["event"],
)
_BREAKER = Gauge(
    "cartrita_search_cache_breaker_open",
    "1 from a failure of Redis in a process until it answers there again.",
    multiprocess_mode="livemax",
)


def count_search(kind: str, seconds: float, *, cache_hit: bool, zero_hits: bool) -> None:
    """Count a search that has been answered."""
    _SEARCHES.labels(kind, "true" if cache_hit else "false").observe(seconds)
    if zero_hits:
        _ZERO_HITS.labels(kind).inc()


def count_dropped(rows: int) -> None:
    """Count searches whose rows are lost."""
    _DROPPED.inc(rows)


def count_cache(event: CacheEvent) -> None:
    """Count one look into the cache of results."""
    _CACHE.labels(event).inc()


def set_breaker(*, is_open: bool) -> None:
    """Tell whether a Redis has failed this process, and not answered it since."""
    _BREAKER.set(is_open)


@require_safe
@never_cache
def metrics_page(request: HttpRequest) -> HttpResponse:
    """All figures as text, for whoever presents METRICS_TOKEN; 404 where none is set."""
    token = search_settings().metrics_token
    if not token:
        return HttpResponse(status=404)
    scheme, _, presented = request.headers.get("Authorization", "").partition(" ")
    # In constant time; and as bytes, because it may be anything.
    if scheme.lower() != "bearer" or not secrets.compare_digest(
        presented.strip().encode(), token.encode()
    ):
        return HttpResponse(status=401, headers={"WWW-Authenticate": "Bearer"})
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return HttpResponse(encode(_Everything()), content_type=content_type)


class _Everything(Collector):
    """The figures of the processes, then those of the database."""

    def collect(self) -> Iterable[Metric]:
        yield from _processes().collect()
        yield from _database_figures()


def _processes() -> Collector:
    registry = CollectorRegistry()
    try:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    except ValueError:  # no PROMETHEUS_MULTIPROC_DIR: this process is the only one
        return REGISTRY
    return registry


# --- What the database tells ---------------------------------------------------


@dataclass(frozen=True)
class _Model:
    """An embedding model and its index."""

    name: str
    measured_recall: float | None
    target_recall: float
    indexed_rows: int | None
    index_bytes: int | None


def _read_state(connection: psycopg.Connection) -> tuple[bool, list[_Model]]:
    """Whether a rebuild runs, and the models. Cheap."""
    models = connection.execute(
        """
        SELECT m.name, m.measured_recall, m.target_recall, m.indexed_rows,
            pg_relation_size(
                to_regclass('public.' || quote_ident(public.vector_index_name(m.name))))
        FROM public.embedding_models AS m
        ORDER BY m.name
        """
    ).fetchall()
    rebuilding = lock_holder(connection, REBUILD_LOCK) is not None
    return rebuilding, [_Model(*row) for row in models]


@dataclass(frozen=True)
class _Counts:
    """Each model's vectors, missing and stale ones; when they were counted, and for how long."""

    models: list[tuple[str, int, int, int]]
    counted_at: float
    seconds: float


_counts: _Counts | None = None


def _count(connection: psycopg.Connection) -> None:
    """Keep the counts, for whichever scrape comes when they are there."""
    global _counts  # noqa: PLW0603
    started = time.monotonic()
    models = connection.execute(
        """
        SELECT s.embedding_model, sum(s.embeddings)::bigint, sum(s.missing)::bigint,
            sum(s.stale)::bigint
        FROM public.vector_search_stats AS s
        WHERE s.embedding_model IS NOT NULL
        GROUP BY s.embedding_model
        ORDER BY s.embedding_model
        """
    ).fetchall()
    _counts = _Counts(models, time.time(), time.monotonic() - started)


def _alias() -> str:
    # A replica knows neither the primary's locks nor, always, its latest rows.
    return router.db_for_write(EmbeddingModel)


_state = Watch(_read_state, alias=_alias, seconds=PATIENCE)
_counting = Watch(_count, alias=_alias, seconds=60)


def _present_counts() -> _Counts | None:
    """The latest counts; the last known ones while counting takes long, or fails."""
    rest = max(COUNTING_REST, _counts.seconds / COUNTING_SHARE) if _counts else 0.0
    if _counts is None or time.time() - _counts.counted_at >= rest:
        with suppress(TimeoutError, psycopg.Error):
            _counting.answer(PATIENCE)
    return _counts


def _database_figures() -> Iterator[Metric]:
    try:
        rebuilding, models = _state.answer(PATIENCE)
    except (TimeoutError, psycopg.Error):
        yield GaugeMetricFamily("cartrita_search_database_up", _UP, 0)
        return
    yield GaugeMetricFamily("cartrita_search_database_up", _UP, 1)
    yield GaugeMetricFamily(
        "cartrita_search_rebuild_running", "1 while vector indexes are rebuilt.", rebuilding
    )
    for name, text, value_of in _MODEL_FIGURES:
        yield _by_model(name, text, [(model.name, value_of(model)) for model in models])
    if counts := _present_counts():
        for position, (name, text) in enumerate(_COUNTED):
            yield _by_model(
                name, text, [(model, counted[position]) for model, *counted in counts.models]
            )
        yield GaugeMetricFamily(
            "cartrita_search_embeddings_counted_timestamp_seconds",
            "When vectors, missing and stale ones were counted.",
            counts.counted_at,
        )


_UP = "1 if the database answered this scrape."


_MODEL_FIGURES: tuple[tuple[str, str, Callable[[_Model], float | None]], ...] = (
    (
        "index_recall",
        "Recall@10 of a model's vector index against the exact scan, as last measured.",
        lambda model: model.measured_recall,
    ),
    ("index_target_recall", "What that should be.", lambda model: model.target_recall),
    ("index_size_bytes", "A model's vector index on disk.", lambda model: model.index_bytes),
    (
        "index_rows",
        "Vectors of a model when its index was built.",
        lambda model: model.indexed_rows,
    ),
)
_COUNTED = (
    ("embeddings", "Vectors of a model."),
    ("missing_embeddings", "Documents without a vector of the model."),
    ("stale_embeddings", "Vectors of an older text than their document's."),
)


def _by_model(name: str, text: str, values: Iterable[tuple[str, float | None]]) -> Metric:
    """A gauge with a value for each model that has one."""
    family = GaugeMetricFamily(f"cartrita_search_{name}", text, labels=["model"])
    for model, value in values:
        if value is not None:
            family.add_metric([model], value)
    return family
