"""Cached search results, which are never older than the last committed write.

**Promise.** A search that begins after a write has committed never returns an answer
from before it, whoever wrote. What an answer is made from has a *generation*, kept in
the database and changed by the writing transaction itself (``sql/cache/``); it is read
before the search, on the same connection, and is part of the key that the answer is kept
under. So an answer may be newer than its key says, never older. A replica that lags tells
the generation that it has come to, and has its own answers. Where a pooler stands between,
generation and search share a transaction, so both are of one server.
A transaction that has written anything neither finds nor leaves cached answers.

Answers are kept in ``CACHES["search"]``, for CACHE_SECONDS; without such an alias, or with
CACHE_SECONDS 0, nothing is. Entries hold MessagePack under a keyed hash: neither the query
nor the person can be read out of a key. Whatever goes wrong with the cache, the search is
answered by the database. Of equal searches at a time one asks the database, and the others
wait for its answer; where it takes long another one begins every two seconds, and after ten
seconds each asks for itself.

Not in the key: what an embedder or reranker of the same class and options learns meanwhile,
and session settings that row-level policies go by (the role itself is).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgpack
from django.conf import settings
from django.core.cache import BaseCache, InvalidCacheBackendError, caches
from django.db import DEFAULT_DB_ALIAS, connections, transaction

from .conf import search_settings
from .errors import InvalidArgument, RedisUnavailable, search_errors
from .guarded_redis import GuardedRedisCache, State
from .models import CacheInvalidation
from .prometheus import count_cache

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser

__all__ = [
    "NAMESPACES",
    "GuardedRedisCache",
    "Request",
    "answer",
    "breaker_state",
    "invalidate",
    "redis_failure",
]

logger = logging.getLogger(__name__)

ALIAS = "search"

#: What can be invalidated by name, and which searches that concerns.
NAMESPACES = {
    "identity": "every search",
    "documents": "every search, as after a change of a document",
    "models": "every search, as after a change of a model or of search_settings",
    "configs": "searches for a person",
    "sources": "searches that are not restricted to sources",
}

#: Equal searches wait so long for the one that asks the database.
WAIT_SECONDS = 10.0
#: It may have died: so long after it began another one begins.
TURN_SECONDS = 2.0
_POLL_SECONDS = (0.002, 0.05)

_KEY = re.compile("[0-9a-f]{32}")

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Request(Generic[Answer]):
    """A search as the cache sees it."""

    #: Everything that decides the answer apart from the database: plain values.
    question: Sequence[Any]
    #: What the answer is restricted by: only these people's and sources' invalidations count.
    user: int | None
    sources: Sequence[str]
    using: str
    #: The answer as plain values, and back.
    dump: Callable[[Answer], Any]
    load: Callable[[Any], Answer]

    @property
    def namespaces(self) -> list[str]:
        """The namespaces of the database that decide the answer."""
        named = ["identity", "documents", "models"]
        if self.user is not None:
            named += ["configs", f"user:{self.user}"]
        return named + ([f"source:{source}" for source in self.sources] or ["sources"])


def answer(
    ask: Callable[[], Request[Answer]],
    prepare: Callable[[], object],
    search: Callable[[], Answer],
) -> tuple[Answer, bool]:
    """The cached answer, or what ``search`` returns; and whether it was cached.

    ``ask`` is called where anything is cached at all. ``prepare`` is called before
    ``search``, outside any transaction: for what takes long and no database.
    """
    if (store := _store()) is None:
        prepare()
        return search(), False
    request = ask()
    key = _key(request, _generation(request))
    if key is None:
        prepare()
        return search(), False
    found = store.get(key, request)
    if found is None:
        found = store.wait_for(key, request)
    if isinstance(found, _TooLarge):
        prepare()
        return search(), False
    if found is not None:
        count_cache("hit")
        return found.answer, True
    count_cache("miss" if breaker_state() == "closed" else "error")
    try:
        prepare()
        with _one_server(request.using):
            # Once more: behind a pooler this may be another server than a moment ago.
            key_here = _key(request, _generation(request))
            made = search()
        if key_here is not None:
            store.put(key_here, request.dump(made))
    finally:
        store.computed(key)
    return made, False


def breaker_state(alias: str = ALIAS) -> State:
    """'closed', 'open' or 'half-open': whether this process uses the Redis of that cache.

    'closed' too where the cache is none in Redis.
    """
    backend = _backend(alias)
    return backend.breaker.state if isinstance(backend, GuardedRedisCache) else "closed"


def redis_failure() -> str | None:
    """What searches go past Redis for: the class of its error. None where they do not."""
    backend = _backend(ALIAS) if search_settings().cache_seconds else None
    return backend.breaker.failure if isinstance(backend, GuardedRedisCache) else None


def invalidate(
    namespace: str | None = None,
    *,
    key: str | None = None,
    user: AbstractBaseUser | int | None = None,
    source: str | None = None,
    reason: str,
    by: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> CacheInvalidation:
    """Make cached answers unfindable: of a namespace, one entry, a person, or a source.

    Exactly one is given. Returned is the row of cache_invalidation_log, with the reason,
    and with ``by`` or else the database's role. But for one
    entry it is the database that is told, so it takes effect with the commit, for every
    process, and needs no Redis. A source's are also those of searches over all sources.

    Raises `InvalidArgument` for none or several, or for what nothing is cached under, and
    `RedisUnavailable` where one entry cannot be deleted.
    """
    user = getattr(user, "pk", user)
    _check_target({"namespace": namespace, "key": key, "user": user, "source": source})
    if not reason.strip():
        raise InvalidArgument("An invalidation has a reason.", "Nothing was changed.")
    details = dict(metadata or {})
    log = CacheInvalidation.objects.using(using)
    if key is not None:
        _delete(key)
        who = {} if by is None else {"invalidated_by": by}
        return log.create(cache_key=key, invalidation_reason=reason, metadata=details, **who)
    target = namespace or (f"user:{user}" if source is None else f"source:{source}")
    with search_errors(), transaction.atomic(using=using), connections[using].cursor() as cursor:
        cursor.execute(
            "SELECT public.invalidate_search_cache(%s, %s, %s, %s)",
            [target, reason, by, json.dumps(details)],
        )
        (row,) = cursor.fetchone()
    return log.get(pk=row)


def _check_target(given: Mapping[str, object]) -> None:
    """One, and such a one as searches may be cached under: a typo would do nothing."""
    named = [(name, value) for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise InvalidArgument(
            f"One of {', '.join(given)} says what to invalidate; given: "
            f"{', '.join(name for name, _ in named) or 'none'}.",
            "Nothing was changed.",
        )
    ((name, value),) = named
    if name == "namespace" and value not in NAMESPACES:
        raise InvalidArgument(
            f'There is no namespace "{value}".',
            f"Nothing was changed. There are: {', '.join(NAMESPACES)}.",
        )
    if name == "key" and not (isinstance(value, str) and _KEY.fullmatch(value)):
        raise InvalidArgument(
            f"{value!r} is no key: that is the last part of the entry's name in Redis, 32"
            " hexadecimal digits.",
            "Nothing was changed.",
        )
    if name == "user" and (not isinstance(value, int) or isinstance(value, bool)):
        raise InvalidArgument(f"{value!r} is no user's id.", "Nothing was changed.")
    if name == "source" and not (isinstance(value, str) and value):
        raise InvalidArgument(f"{value!r} is no source_table.", "Nothing was changed.")


def _delete(key: str) -> None:
    backend = _backend(ALIAS)
    if backend is None:
        raise RedisUnavailable('There is no CACHES["search"].', "Nothing is cached.")
    # None: Redis has not done it.
    if backend.delete(key) is None:
        raise RedisUnavailable(
            "Redis does not answer, so the entry was not deleted.",
            f"It ends within {search_settings().cache_seconds} s. Invalidating a namespace "
            "needs no Redis.",
        )


# --- The key ----------------------------------------------------------------


def _generation(request: Request[Any]) -> str | None:
    with search_errors(), connections[request.using].cursor() as cursor:
        cursor.execute("SELECT public.search_generation(%s::text[])", [request.namespaces])
        (generation,) = cursor.fetchone()
    return None if generation is None else str(generation)


def _key(request: Request[Any], generation: str | None) -> str | None:
    """32 hexadecimal digits; None for what must not be cached, or has no key."""
    if generation is None:
        return None
    try:
        material = msgpack.packb([_code_version(), generation, *request.question])
    except (TypeError, ValueError, OverflowError):
        # An argument of a type that no search takes: the search will say so.
        return None
    return hashlib.blake2b(
        material, digest_size=16, key=_hash_key(settings.SECRET_KEY)
    ).hexdigest()


@cache
def _hash_key(secret: str) -> bytes:
    # Keyed, because words that people search for are guessed and looked up easily.
    return hashlib.sha256(b"cartrita_search.cache" + secret.encode()).digest()


@cache
def _code_version() -> bytes:
    """What this package's modules hold: another release has other answers."""
    hashed = hashlib.blake2b(digest_size=16)
    for file in sorted(Path(__file__).parent.glob("*.py")):
        hashed.update(file.read_bytes())
    return hashed.digest()


def _one_server(using: str) -> AbstractContextManager[Any]:
    if connections[using].in_atomic_block:
        return nullcontext()
    return transaction.atomic(using=using)


# --- The store --------------------------------------------------------------


@dataclass(frozen=True)
class _Found(Generic[Answer]):
    answer: Answer


class _TooLarge:
    """What stands for an answer beyond CACHE_MAX_BYTES, so that nobody waits for it."""


def _backend(alias: str) -> BaseCache | None:
    try:
        return caches[alias]
    except InvalidCacheBackendError:
        return None


def _store() -> _Store | None:
    """Where answers are kept; None if nowhere, or not for the moment."""
    seconds = search_settings().cache_seconds
    backend = _backend(ALIAS) if seconds else None
    if backend is None:
        return None
    if breaker_state(ALIAS) == "open":
        count_cache("error")
        return None
    return _Store(backend)


class _Store:
    """The cache, as something that may fail at any time."""

    def __init__(self, backend: BaseCache) -> None:
        self._backend = backend

    def get(self, key: str, request: Request[Answer]) -> _Found[Answer] | _TooLarge | None:
        try:
            payload = self._backend.get(key)
            if payload is None:
                return None
            stored_key, *values = msgpack.unpackb(payload)
            if stored_key == key:
                return _Found(request.load(*values)) if values else _TooLarge()
            problem: Exception = ValueError("it is the value of another key")
        except Exception as error:  # noqa: BLE001 - whatever is there, no search fails of it
            problem = error
        _complain("A cached answer cannot be used, and is made anew", problem)
        return None

    def wait_for(self, key: str, request: Request[Answer]) -> _Found[Answer] | _TooLarge | None:
        """The answer that another search is about to leave; None where it is ours to make."""
        deadline = time.monotonic() + WAIT_SECONDS
        pause, longest = _POLL_SECONDS
        announce: Callable[..., bool | None] = self._backend.add
        while time.monotonic() < deadline:
            try:
                announced = announce(_lock(key), 1, TURN_SECONDS)
            except Exception as error:  # noqa: BLE001
                _complain("Answers are not being cached", error)
                return None
            if announced is None:  # Redis did not answer
                return None
            if not announced:
                time.sleep(pause)
                pause = min(pause * 1.5, longest)
            # Even if it is ours now: the other has left it in between.
            if (found := self.get(key, request)) is not None:
                return found
            if announced:
                return None
        return None

    def put(self, key: str, value: Any) -> None:
        try:
            self._backend.set(key, _packed(key, value), search_settings().cache_seconds)
        except Exception as error:  # noqa: BLE001
            _complain("Answers are not being cached", error)

    def computed(self, key: str) -> None:
        """Let those who wait go on."""
        try:
            self._backend.delete(_lock(key))
        except Exception as error:  # noqa: BLE001
            _complain("Answers are not being cached", error)


def _packed(key: str, value: Any) -> bytes:
    too_large: bytes = msgpack.packb([key])
    try:
        payload: bytes = msgpack.packb([key, value])
    except (OverflowError, ValueError):
        # Metadata with an integer beyond 64 bits, or nested beyond hundreds of levels.
        return too_large
    return payload if len(payload) <= search_settings().cache_max_bytes else too_large


def _lock(key: str) -> str:
    return f"{key}.lock"


_complained: set[str] = set()


def _complain(consequence: str, error: Exception) -> None:
    if consequence not in _complained:  # once a process
        _complained.add(consequence)
        logger.warning("%s: %s: %s", consequence, type(error).__name__, error)
