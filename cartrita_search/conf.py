"""Typed settings under ``CARTRITA_SEARCH``, read lazily and checked at start.

Thresholds that SQL functions need as well (candidate pool, index budget, default
language) are not here but in the table ``search_settings``, so that a client
without Django sees the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings

from .errors import InvalidArgument


@dataclass(frozen=True)
class SearchSettings:
    """The keys of ``CARTRITA_SEARCH``, upper case there, with their defaults."""

    #: Dotted path of an `embedders.Embedder` class; None: text cannot be embedded.
    embedder: str | None = None
    #: Keyword arguments for that class; a key among them is never shown.
    embedder_options: dict[str, Any] = field(default_factory=dict)
    #: Dotted path of a `rerank.Reranker` class.
    reranker: str = "cartrita_search.rerank.MaximalMarginalRelevance"
    #: Keyword arguments for that class.
    reranker_options: dict[str, Any] = field(default_factory=dict)
    #: Candidates that are re-scored, best first, 1 to 10,000; what is ranked lower stays so.
    rerank_depth: int = 50
    #: Whether each search leaves a row in search_performance_metrics.
    record_searches: bool = True
    #: Whether that row holds the query's text; otherwise only a keyed hash of it.
    store_query_text: bool = False
    #: Rows that a process holds unwritten at most; a write begins at a tenth of it.
    metrics_buffer_rows: int = 10_000
    #: Seconds after which a recorded search is written at the latest.
    metrics_flush_seconds: float = 5.0
    #: Days that prune_search_history leaves of the records of searches and invalidations.
    metrics_keep_days: int = 90
    #: What Prometheus must present as a bearer token at /metrics; "": there is no such page.
    metrics_token: str = ""
    #: Seconds that a search's answer is kept in CACHES["search"], if there is such an
    #: alias; 0: none is.
    cache_seconds: int = 300
    #: Answers that take more bytes are not kept.
    cache_max_bytes: int = 1_000_000
    #: Role that may use the tables and functions; "" grants to nobody else.
    grant_role: str = ""
    #: Whether that role runs the site, and may use the tables of all its apps.
    grant_site: bool = False
    #: The server itself, as a URL, where DATABASES names a pooler: what holds a session's
    #: lock, and what no pooler carries, goes there. "": DATABASES names the server.
    direct_database_url: str = ""
    #: Whether migrate goes on where applied migrations differ from this release's files.
    force_migration: bool = False
    #: What other tables of a v1 database hold, for import_v1: a dict for each, as --map.
    v1_tables: list[dict[str, str]] = field(default_factory=list)
    #: Folder of PostgreSQL's client programs (pg_dump, pg_restore, psql); "": looked for.
    postgres_bin: str = ""
    #: Aliases of DATABASES that are replicas of "default": where searches go.
    replicas: Sequence[str] = ()
    #: What a replica may be behind; searches pass over one that is more.
    replica_max_lag_seconds: float = 10.0


_POSTGRES_SCHEMES = ("postgres://", "postgresql://")


def _is_path(value: object) -> bool:
    return isinstance(value, str) and "." in value


def _is_arguments(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _is_maps(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, dict)
        and all(isinstance(part, str) for pair in each.items() for part in pair)
        for each in value
    )


def _is_whole_number(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 86_400


#: What each value must be, in words and as a test.
_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "embedder": ("the dotted path of a class", lambda v: v is None or _is_path(v)),
    "embedder_options": ("a dict of keyword arguments", _is_arguments),
    "reranker": ("the dotted path of a class", _is_path),
    "reranker_options": ("a dict of keyword arguments", _is_arguments),
    "rerank_depth": ("a whole number from 1 to 10,000", lambda v: _is_whole_number(v, 10_000)),
    "record_searches": ("True or False", lambda v: isinstance(v, bool)),
    "store_query_text": ("True or False", lambda v: isinstance(v, bool)),
    "metrics_buffer_rows": (
        "a whole number from 1 to 1,000,000",
        lambda v: _is_whole_number(v, 1_000_000),
    ),
    "metrics_flush_seconds": ("a number of seconds above 0, 86,400 at most", _is_seconds),
    "metrics_keep_days": (
        "a whole number from 1 to 36,500",
        lambda v: _is_whole_number(v, 36_500),
    ),
    "metrics_token": (
        "a text of 16 characters or more, or empty",
        lambda v: isinstance(v, str) and (not v or len(v) >= 16),
    ),
    "cache_seconds": (
        "a whole number of seconds from 0 to 86,400",
        lambda v: (v == 0 and not isinstance(v, bool)) or _is_whole_number(v, 86_400),
    ),
    "cache_max_bytes": (
        "a whole number from 1 to 100,000,000",
        lambda v: _is_whole_number(v, 100_000_000),
    ),
    "grant_role": ("a role's name", lambda v: isinstance(v, str)),
    "grant_site": ("True or False", lambda v: isinstance(v, bool)),
    "direct_database_url": (
        "a URL like postgres://user:password@host:5432/name",
        lambda v: isinstance(v, str) and (not v or v.startswith(_POSTGRES_SCHEMES)),
    ),
    "force_migration": ("True or False", lambda v: isinstance(v, bool)),
    "v1_tables": ('a list of dicts like {"table": "notes", "content": "body"}', _is_maps),
    "postgres_bin": ("the path of a folder", lambda v: isinstance(v, str)),
    "replicas": (
        "a list of aliases of DATABASES",
        lambda v: isinstance(v, (list, tuple)) and all(name in settings.DATABASES for name in v),
    ),
    "replica_max_lag_seconds": ("a number of seconds above 0, 86,400 at most", _is_seconds),
}


_NONE_GIVEN: dict[str, Any] = {}
#: The dict that was checked last, and what it says: every search asks.
_checked: tuple[object, SearchSettings] | None = None


def search_settings() -> SearchSettings:
    """The present settings. Raises `InvalidArgument` naming the first wrong one."""
    global _checked  # noqa: PLW0603
    raw = getattr(settings, "CARTRITA_SEARCH", _NONE_GIVEN)
    checked = _checked
    if checked is None or checked[0] is not raw:
        loaded, problems = load(raw)
        if problems:
            raise InvalidArgument(problems[0], "See the settings table in README.md.")
        _checked = checked = (raw, loaded)
    return checked[1]


def load(raw: object) -> tuple[SearchSettings, list[str]]:
    """`raw` as settings, and a sentence for everything wrong with it."""
    if not isinstance(raw, dict):
        return SearchSettings(), [f"CARTRITA_SEARCH must be a dict, not {type(raw).__name__}."]
    names = {f.name.upper(): f.name for f in dataclasses.fields(SearchSettings)}
    problems = [
        f"CARTRITA_SEARCH has no key {key!r}; the keys are {', '.join(names)}."
        for key in raw
        if key not in names
    ]
    values = {names[key]: value for key, value in raw.items() if key in names}
    for name, value in values.items():
        expected, fits = _EXPECTED[name]
        if not fits(value):
            # There may be a secret among these.
            secret = name.endswith(("_options", "_url", "_token"))
            found = "" if secret else f", not {value!r}"
            problems.append(f'CARTRITA_SEARCH["{name.upper()}"] must be {expected}{found}.')
    return (SearchSettings() if problems else SearchSettings(**values)), problems
