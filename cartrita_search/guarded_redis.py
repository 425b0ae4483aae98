"""Redis behind a circuit breaker: a cache backend that a dead or slow Redis cannot slow down.

`GuardedRedisCache` takes the place of ``django_redis.cache.RedisCache`` in ``CACHES``.
Whatever fails, Django's methods of a cache raise nothing: a read finds nothing, a write is
left out. Those that django-redis has besides (ttl, lock, sadd, …) raise redis-py's errors.

The first command that Redis does not answer, refuses for want of memory, rights or a
password, or takes for a replica's, opens the breaker: for `INTERVAL_SECONDS` this process
does without Redis, reads included, and pays nothing for it. Then one caller, and no
other, tries a write (half-open); the breaker closes when that succeeds. One process has
one breaker for each server, whatever number of aliases and threads use it.

A value whose write or deletion was lost meanwhile must not come back as if nothing had
been: the keys are remembered, and deleted before the breaker closes. Those of a process
that ends during an outage are forgotten; they live for their time in Redis at most.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

from django_redis.cache import RedisCache
from redis import ConnectionError as RedisConnectionError
from redis import Redis, RedisError, ResponseError
from redis import TimeoutError as RedisTimeoutError
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.exceptions import DataError, WatchError
from redis.retry import Retry

from .prometheus import set_breaker

logger = logging.getLogger(__name__)

#: From a failure to the next try.
INTERVAL_SECONDS = 5.0
#: What one failure costs at most. An answer takes well below a millisecond in one network,
#: and a few tens where Redis forks to save.
TIMEOUT_SECONDS = 0.25
#: Keys remembered during an outage; the oldest go first. About 100 bytes each.
LOST_KEYS = 100_000

State = Literal["closed", "open", "half-open"]
Key: TypeAlias = str | bytes

#: Commands that change the one key after their name.
_WRITES = frozenset(
    (
        *("SET", "SETEX", "PSETEX", "SETNX", "GETSET", "APPEND", "INCRBY", "DECRBY"),
        *("EXPIRE", "PEXPIRE", "EXPIREAT", "PEXPIREAT", "PERSIST"),
        *("HSET", "HDEL", "SADD", "SREM", "SMOVE", "SPOP", "ZADD", "ZREM", "ZINCRBY"),
    )
)
#: Commands of which every argument is a key to be gone.
_DELETIONS = frozenset(("DEL", "UNLINK"))
#: Codes of answers that speak of the command, not of the server.
_CALLERS_FAULT = frozenset(("ERR", "WRONGTYPE", "NOSCRIPT", "EXECABORT"))


class BreakerOpen(RedisConnectionError):
    """Redis was not asked: it has failed a moment ago."""


class Breaker:
    """The state of one server as this process sees it. Safe among threads.

    ``name`` is for the log, and holds no password.
    """

    def __init__(
        self,
        name: str,
        *,
        interval: float = INTERVAL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._interval = interval
        self._clock = clock
        self._lock = threading.Lock()
        self._retry_at: float | None = None
        self._failure = ""
        self._probing = False
        self._lost: dict[Key, None] = {}

    @property
    def state(self) -> State:
        """'closed': Redis is used. 'open': it is not. 'half-open': somebody tries, or may."""
        with self._lock:
            if self._retry_at is None:
                return "closed"
            return "half-open" if self._probing or self._clock() >= self._retry_at else "open"

    @property
    def failure(self) -> str | None:
        """The class of the error that Redis is left out for; None while it is used."""
        with self._lock:
            return None if self._retry_at is None else self._failure

    def admit(self, probe: Callable[[list[Key]], object]) -> None:
        """Return if Redis may be asked; raise `BreakerOpen` if not.

        Where it is this caller's turn to try, ``probe`` is called with the keys whose
        writes were lost, to delete them; what it raises is a failure.
        """
        with self._lock:
            if self._retry_at is None:
                return
            if self._probing or self._clock() < self._retry_at:
                raise BreakerOpen(f"{self._name} failed within the last {self._interval:g} s")
            self._probing = True
            lost = list(self._lost)
        try:
            probe(lost)
        except RedisError as error:
            self.failed(error)
            raise
        else:
            self._closed(lost)
        finally:
            with self._lock:
                self._probing = False

    def _closed(self, deleted: list[Key]) -> None:
        with self._lock:
            for key in deleted:
                self._lost.pop(key, None)
            # What was lost during the probe is the next caller's to delete, at once.
            if self._lost:
                return
            self._retry_at = None
        _tell()
        logger.warning("%s answers again.", self._name)

    def failed(self, error: Exception, lost: Sequence[Key] = ()) -> None:
        """Do without Redis for the interval; ``lost`` are the keys not written or deleted."""
        self.lose(lost)
        with self._lock:
            first, self._retry_at = self._retry_at is None, self._clock() + self._interval
            self._failure = type(error).__name__
        if first:  # once an outage
            _tell()
            logger.warning(
                "%s is left out until it answers, tried every %g s: %s: %s",
                self._name,
                self._interval,
                type(error).__name__,
                " ".join(str(error).split()),
            )

    def lose(self, keys: Sequence[Key]) -> None:
        """Remember these keys: what Redis has under them is out of date."""
        with self._lock:
            for key in keys:
                self._lost.pop(key, None)
                self._lost[key] = None
            while len(self._lost) > LOST_KEYS:
                del self._lost[next(iter(self._lost))]


class GuardedRedis(Redis):
    """A client whose every command and pipeline goes by the breaker. Raises redis-py's errors."""

    def __init__(self, *args: Any, breaker: Breaker, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._breaker = breaker

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """As `Redis.execute_command`; raises `BreakerOpen` without asking while it is open."""
        return self.guarded(_written(args), partial(super().execute_command, *args, **options))

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """As `Redis.pipeline`, guarded as one command."""
        return GuardedPipeline(self, transaction, shard_hint)

    def guarded(self, written: list[Key], call: Callable[[], Any]) -> Any:
        """What ``call`` returns, which changes the keys ``written``."""
        try:
            self._breaker.admit(self._probe)
        except RedisError:
            self._breaker.lose(written)
            raise
        try:
            return call()
        except (DataError, WatchError):
            raise
        except ResponseError as error:
            if _code(error) not in _CALLERS_FAULT:
                self._breaker.failed(error, written)
            raise
        except RedisError as error:
            self._breaker.failed(error, written)
            if isinstance(error, RedisConnectionError | RedisTimeoutError):
                raise
            # What answers is no Redis, for instance: django-redis takes no notice of these.
            raise RedisConnectionError(str(error)) from error

    def _probe(self, lost: list[Key]) -> None:
        # A write: a Redis that is full, or a replica by now, still answers reads, and
        # with values that should have been replaced.
        run: Callable[..., Any] = super().execute_command
        run("SET", "cartrita:breaker", b"1", "PX", 1000)
        for start in range(0, len(lost), 1000):
            run("UNLINK", *lost[start : start + 1000])


class GuardedPipeline(Pipeline):
    """The pipeline of a `GuardedRedis`."""

    def __init__(self, client: GuardedRedis, transaction: bool, shard_hint: str | None) -> None:
        super().__init__(
            client.connection_pool, client.response_callbacks, transaction, shard_hint
        )
        self._guarded = client.guarded

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """As `Pipeline.execute`."""
        written = [key for args, _ in self.command_stack for key in _written(args)]
        answers: list[Any] = self._guarded(written, partial(super().execute, raise_on_error))
        return answers


class GuardedRedisCache(RedisCache):  # type: ignore[misc]  # the base has no types
    """django-redis' cache, with its settings, behind the breaker.

    Of ``OPTIONS``, IGNORE_EXCEPTIONS is on, and SOCKET_TIMEOUT and SOCKET_CONNECT_TIMEOUT
    are `TIMEOUT_SECONDS` unless given.
    """

    def __init__(self, server: str, params: dict[str, Any]) -> None:
        self.breaker = _breaker(server)
        options = params.get("OPTIONS", {})
        guarded = {
            "SOCKET_TIMEOUT": TIMEOUT_SECONDS,
            "SOCKET_CONNECT_TIMEOUT": TIMEOUT_SECONDS,
        } | options
        guarded |= {
            "IGNORE_EXCEPTIONS": True,
            "REDIS_CLIENT_CLASS": f"{__name__}.{GuardedRedis.__name__}",
            "REDIS_CLIENT_KWARGS": options.get("REDIS_CLIENT_KWARGS", {})
            | {"breaker": self.breaker},
            # A connection that broke while nobody used it is made anew, once and at once;
            # silence is not asked twice.
            "CONNECTION_POOL_KWARGS": {"retry": Retry(NoBackoff(), 1, (RedisConnectionError,))}
            | options.get("CONNECTION_POOL_KWARGS", {}),
        }
        super().__init__(server, params | {"OPTIONS": guarded})

    def touch(self, *args: Any, **kwargs: Any) -> bool | None:
        """As Django's; None where Redis did not answer, for which django-redis raises."""
        try:
            return bool(super().touch(*args, **kwargs))
        except RedisError:
            return None


_breakers: dict[str, Breaker] = {}
_making = threading.Lock()


def _breaker(server: str | list[str]) -> Breaker:
    """This process's breaker of that server: the backend itself is made anew for each thread."""
    key = server if isinstance(server, str) else ",".join(server)
    with _making:
        if key not in _breakers:
            _breakers[key] = Breaker("Redis")
        return _breakers[key]


def _tell() -> None:
    """Put the metrics in step with the breakers."""
    with _making:  # so that whoever looked last is the one who is believed
        set_breaker(is_open=any(each.state != "closed" for each in _breakers.values()))


def _written(args: Sequence[Any]) -> list[Key]:
    """The keys that a command changes."""
    name = args[0]
    if name in _DELETIONS:
        return list(args[1:])
    return [args[1]] if name in _WRITES else []


def _code(error: ResponseError) -> str:
    """The error's code, which is the first word of Redis' answer."""
    return getattr(error, "status_code", None) or str(error).partition(" ")[0]
