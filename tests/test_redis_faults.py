"""A Redis that is gone, silent, full, read-only or closed to us: nobody notices but the log."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from django.conf import settings as django_settings
from django.core.cache import caches
from django.test import Client
from django.urls import reverse
from prometheus_client import REGISTRY
from redis import ConnectionError as RedisConnectionError

from cartrita_search import guarded_redis, metrics, retrieval
from cartrita_search.cache import GuardedRedisCache, breaker_state
from cartrita_search.guarded_redis import Breaker, BreakerOpen, State
from tests.postgres import upsert
from tests.redis_server import Proxy, RedisServer, caches_at, redis_behind_proxy


@dataclass
class Clock:
    """Time that a test moves."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def nothing(_: Any) -> None:
    """A probe that succeeds."""


def unexpected(_: Any) -> None:
    """A probe that is not to be made."""
    raise AssertionError


def state(breaker: Breaker) -> State:
    """In a function: a type checker believes that an attribute stays what it was."""
    return breaker.state


# --- The breaker ------------------------------------------------------------


def test_a_failure_opens_it_for_the_interval_and_a_probe_closes_it() -> None:
    clock = Clock()
    breaker = Breaker("Redis", interval=5, clock=clock)
    states = [state(breaker)]
    breaker.admit(unexpected)
    breaker.failed(RedisConnectionError("gone"))
    states.append(state(breaker))
    with pytest.raises(BreakerOpen):
        breaker.admit(unexpected)
    clock.now += 5
    states.append(state(breaker))
    breaker.admit(nothing)
    states.append(state(breaker))
    assert states == ["closed", "open", "half-open", "closed"]


def test_a_probe_that_fails_opens_it_anew() -> None:
    clock = Clock()
    breaker = Breaker("Redis", interval=5, clock=clock)
    breaker.failed(RedisConnectionError("gone"))
    clock.now += 5

    def probe(_: Any) -> None:
        raise RedisConnectionError("still gone")

    with pytest.raises(RedisConnectionError, match="still gone"):
        breaker.admit(probe)
    assert state(breaker) == "open"
    clock.now += 4.9
    with pytest.raises(BreakerOpen):
        breaker.admit(unexpected)
    clock.now += 0.1
    breaker.admit(nothing)


def test_one_caller_probes_and_the_others_do_not_wait_for_it() -> None:
    clock = Clock()
    breaker = Breaker("Redis", interval=5, clock=clock)
    breaker.failed(RedisConnectionError("gone"))
    clock.now += 5
    probing, go_on = threading.Event(), threading.Event()

    def probe(_: Any) -> None:
        probing.set()
        assert go_on.wait(30)

    thread = threading.Thread(target=breaker.admit, args=(probe,))
    thread.start()
    assert probing.wait(30)
    assert state(breaker) == "half-open"
    with pytest.raises(BreakerOpen):
        breaker.admit(unexpected)
    go_on.set()
    thread.join(30)
    assert state(breaker) == "closed"


def test_lost_keys_are_the_probes_to_delete_also_those_lost_meanwhile() -> None:
    clock = Clock()
    breaker = Breaker("Redis", interval=5, clock=clock)
    breaker.failed(RedisConnectionError("gone"), ["a"])
    breaker.lose(["b"])
    clock.now += 5
    deleted: list[Any] = []

    def probe(lost: list[Any]) -> None:
        deleted.extend(lost)
        if lost == ["a", "b"]:
            breaker.lose(["c"])

    breaker.admit(probe)
    assert state(breaker) == "half-open"
    breaker.admit(probe)
    assert state(breaker) == "closed"
    assert deleted == ["a", "b", "c"]


# --- Faults of a real server ------------------------------------------------


@dataclass
class Redis:
    """What a test breaks and mends, and how much it moves the breaker's clock."""

    server: RedisServer
    proxy: Proxy

    def kill(self) -> None:
        self.server.kill()

    def start(self) -> None:
        self.server.start()

    def silence(self) -> None:
        self.proxy.silence()

    def speak(self) -> None:
        self.proxy.speak()

    def fill(self) -> None:
        self.configure(maxmemory="1", **{"maxmemory-policy": "noeviction"})

    def empty(self) -> None:
        self.configure(maxmemory="0")

    def demote(self) -> None:
        with self.server.client() as client:
            client.replicaof("127.0.0.1", "1")

    def promote(self) -> None:
        with self.server.client() as client:
            client.replicaof("NO", "ONE")

    def lock(self) -> None:
        self.configure(requirepass="other")
        with self.server.client(password="other") as client:
            client.client_kill_filter(_type="normal", skipme=True)

    def unlock(self) -> None:
        with self.server.client(password="other") as client:
            client.config_set("requirepass", "")

    def configure(self, **options: str) -> None:
        with self.server.client() as client:
            for name, value in options.items():
                client.config_set(name, value)


#: What breaks it, what mends it, and the error that is recorded.
FAULTS: dict[str, tuple[Callable[[Redis], None], Callable[[Redis], None], str]] = {
    "refusing": (Redis.kill, Redis.start, "ConnectionError"),
    "hanging": (Redis.silence, Redis.speak, "TimeoutError"),
    "full": (Redis.fill, Redis.empty, "OutOfMemoryError"),
    "read-only": (Redis.demote, Redis.promote, "ReadOnlyError"),
    "wrong password": (Redis.lock, Redis.unlock, "AuthenticationError"),
}


@pytest.fixture
def redis(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    # Those of other tests' servers may be open, which the metrics would tell.
    monkeypatch.setattr(guarded_redis, "_breakers", {})
    with redis_behind_proxy() as (server, proxy):
        settings.CACHES = caches_at(proxy.url, settings.CACHES)
        settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"CACHE_SECONDS": 300}
        yield Redis(server, proxy)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str | bool]:
    """Of each search the error for which it went past Redis, or else whether it was a hit."""
    found: list[str | bool] = []

    def record(metric: metrics.SearchMetric) -> None:
        failure = metric.details.get("redis_failure", metric.cache_hit)
        assert isinstance(failure, str | bool)
        found.append(failure)

    monkeypatch.setattr(metrics, "record", record)
    return found


def figure(name: str, **labels: str) -> float:
    """What Prometheus is told."""
    return REGISTRY.get_sample_value(f"cartrita_search_cache_{name}", labels) or 0.0


def let_the_interval_pass() -> None:
    backend = caches["search"]
    assert isinstance(backend, GuardedRedisCache)
    passed = backend.breaker._clock() + 6
    backend.breaker._clock = lambda: passed


def tea() -> list[str]:
    return [hit.content for hit in retrieval.keyword_search("tea")]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("clean_tables")
@pytest.mark.parametrize("fault", FAULTS)
def test_searches_and_logged_in_pages_go_on_and_redis_is_used_again_when_it_is_back(  # noqa: PLR0917
    redis: Redis,
    recorded: list[str | bool],
    pg: psycopg.Connection,
    admin_client: Client,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    breaks, mends, error = FAULTS[fault]
    page = reverse("admin:index")
    upsert(pg, "1", [1, 0], p_title="Tea", p_content="Steep tea.")
    assert tea() == tea() == ["Steep tea."]
    assert admin_client.get(page).status_code == 200
    assert recorded == [False, True]
    errors = figure("events_total", event="error")

    breaks(redis)
    pg.execute("UPDATE search_documents SET content = 'Iced tea.'")
    with caplog.at_level(logging.WARNING, "cartrita_search.guarded_redis"):
        assert tea() == tea() == ["Iced tea."]
        assert breaker_state() == breaker_state("default") == "open"
        assert admin_client.get(page).status_code == 200
        # A try that fails does no harm either.
        let_the_interval_pass()
        assert breaker_state() == "half-open"
        assert tea() == ["Iced tea."]
        assert breaker_state() == "open"
        assert figure("breaker_open") == 1
        # A session whose end Redis was not told must not come back with Redis.
        ended = admin_client.cookies[django_settings.SESSION_COOKIE_NAME].value
        admin_client.logout()
    assert len(caplog.records) == 1  # once an outage, not once a search
    assert recorded[2:] == [error] * 3
    assert figure("events_total", event="error") == errors + 3

    mends(redis)
    let_the_interval_pass()
    assert tea() == ["Iced tea."]
    assert breaker_state() == "closed"
    assert figure("breaker_open") == 0
    assert tea() == ["Iced tea."]
    assert recorded[-1] is True
    admin_client.cookies[django_settings.SESSION_COOKIE_NAME] = ended
    assert admin_client.get(page).status_code == 302  # to the login


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("clean_tables")
def test_a_restart_while_nobody_asked_is_not_even_a_failure(
    redis: Redis, recorded: list[str | bool], pg: psycopg.Connection
) -> None:
    upsert(pg, "1", [1, 0], p_title="Tea", p_content="Steep tea.")
    tea()
    redis.kill()
    redis.start()
    tea()
    tea()
    assert breaker_state() == "closed"
    assert recorded == [False, False, True]


def test_what_only_sessions_meet_is_in_the_metrics_too(redis: Redis, settings: Any) -> None:
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"CACHE_SECONDS": 0}
    redis.kill()
    caches["default"].get("key")
    assert figure("breaker_open") == 1
    redis.start()
    let_the_interval_pass()
    caches["default"].get("key")
    assert figure("breaker_open") == 0


@pytest.mark.parametrize("alias", ["default", "search"])
def test_no_method_of_the_cache_raises_without_redis(settings: Any, alias: str) -> None:
    settings.CACHES = caches_at("redis://127.0.0.1:1/0", settings.CACHES)
    cache: Any = caches[alias]
    assert cache.get("key", "nothing") == "nothing"
    assert cache.get_many(["key"]) == {}
    assert not cache.set("key", 1)
    assert not cache.add("key", 1)
    assert not cache.delete("key")
    assert not cache.has_key("key")
    assert not cache.touch("key", 60)
    assert not cache.incr("key")
    assert cache.get_or_set("key", 1) == 1
    cache.set_many({"key": 1})
    cache.clear()
    assert breaker_state(alias) == "open"


def test_a_callers_mistake_is_not_taken_for_a_failure(redis: Redis) -> None:
    cache: Any = caches["default"]
    cache.set("text", "no number")
    with redis.server.client() as client:
        (key,) = client.keys("*text")
    raw = cache.client.get_client()
    with pytest.raises(Exception, match="WRONGTYPE"):
        raw.lpush(key, 1)
    assert breaker_state("default") == "closed"


def test_lost_writes_of_a_pipeline_are_remembered(redis: Redis) -> None:
    cache = caches["default"]
    cache.set_many({"a": "old", "b": "old"})
    redis.silence()
    cache.set_many({"a": "new"})
    redis.speak()
    let_the_interval_pass()
    assert cache.get("a") is None
    assert cache.get("b") == "old"
