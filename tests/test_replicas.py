"""Searches on a real streaming replica: late, paused, killed, and back."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import Context
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import OperationalError, connection, connections, router, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory

from cartrita.routers import SearchRouter
from cartrita_search import replicas
from cartrita_search.ingest import Document, delete_source, upsert_documents
from cartrita_search.models import SearchDocument
from cartrita_search.retrieval import (
    Hit,
    keyword_search,
    search,
    similarity_search,
)

from .conftest import Connect
from .postgres import upsert
from .replica import Replica, replica_of
from .server_processes import kill, start
from .test_cache import Traffic

ALIAS = "replica_1"

pytestmark = [
    pytest.mark.django_db(transaction=True, databases="__all__"),
    pytest.mark.usefixtures("clean_tables"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module", autouse=True)
def server(database: dict[str, Any]) -> Iterator[Replica]:
    """A streaming replica of this run's server, and a database of Django's of that name."""
    with replica_of(database) as replica, pytest.MonkeyPatch.context() as patch:
        given = connection.settings_dict
        there = {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": replica.parameters["host"],
            "PORT": str(replica.parameters["port"]),
            "OPTIONS": {"connect_timeout": 2},
            "TEST": given["TEST"] | {"MIRROR": "default"},
        }
        patch.setitem(connections.settings, ALIAS, given | there)
        yield replica
        connections[ALIAS].close()
        del connections[ALIAS]


@pytest.fixture
def replica(
    server: Replica, pg: psycopg.Connection, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Replica]:
    """The replica, where searches go; it has all that the primary has."""
    monkeypatch.setattr(replicas, "LOOK_SECONDS", 0.05)
    # A machine that is busy with other tests makes no replica unfit.
    monkeypatch.setattr(replicas, "FRESH_SECONDS", 60.0)
    limit_lag(settings, 3600)
    replicas._begin_afresh()
    replicas._last_write.set(None)
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"REPLICAS": [ALIAS]}
    server.catch_up(pg)
    yield server
    server.resume()
    replicas._last_write.set(None)
    connections[ALIAS].close()


@contextmanager
def databases_searched() -> Iterator[list[str]]:
    """The alias that each search of the block was answered by."""
    found: list[str] = []

    def note(alias: str) -> Callable[..., Any]:
        def wrapper(execute: Any, sql: Any, params: Any, many: Any, context: Any) -> Any:
            done = execute(sql, params, many, context)
            if "search(" in str(sql) or "search_for_user(" in str(sql):
                found.append(alias)
            return done

        return wrapper

    with (
        connections["default"].execute_wrapper(note("default")),
        connections[ALIAS].execute_wrapper(note(ALIAS)),
    ):
        yield found


def limit_lag(settings: Any, seconds: float) -> None:
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"REPLICA_MAX_LAG_SECONDS": seconds}


def wait_until_searches_go_to(alias: str) -> None:
    deadline = time.monotonic() + 60
    while Context().run(replicas.choose) != alias:
        assert time.monotonic() < deadline, f"searches never went to {alias}"


def contents(**options: Any) -> list[str]:
    return [hit.content for hit in keyword_search("tea", **options)]


def store(pg: psycopg.Connection, content: str, key: str = "1", **named: Any) -> None:
    upsert(pg, key, [1, 0], p_title="Tea", p_content=content, **named)


# --- Which database ---------------------------------------------------------


def test_every_search_runs_on_the_replica_and_finds_what_the_primary_does(
    replica: Replica, pg: psycopg.Connection
) -> None:
    store(pg, "Steep green tea.", "1", p_user_id=7)
    store(pg, "Tea, and coffee.", "2", p_metadata='{"kind": "note"}', p_tags=["drinks"])
    store(pg, "Black tea.", "3")
    pg.execute("INSERT INTO retrieval_configs (user_id, rerank_enabled) VALUES (7, true)")
    replica.catch_up(pg)
    wait_until_searches_go_to(ALIAS)
    with databases_searched() as searched:
        asks: list[Callable[..., list[Hit]]] = [
            lambda **options: keyword_search("tea", **options),
            lambda **options: keyword_search("tea", snippets=True, user=7, **options),
            lambda **options: keyword_search("tea", source="notes", tags=["drinks"], **options),
            lambda **options: similarity_search([1, 0], metadata={"kind": "note"}, **options),
            lambda **options: similarity_search([1, 0], limit=2, **options),
            lambda **options: search("tea", vector=[1, 0], explain=True, **options),
            lambda **options: search("tea", vector=[1, 0], user=7, **options),
        ]
        for ask in asks:
            there, here = ask(), ask(using="default")
            assert there == here
            assert there
    assert searched == [ALIAS, "default"] * 7


def test_a_statement_prepared_on_a_replica(replica: Replica, pg: psycopg.Connection) -> None:
    store(pg, "Black tea.")
    pg.execute("SELECT rebuild_vector_indexes()")
    replica.catch_up(pg)
    connections[ALIAS].settings_dict["OPTIONS"]["prepare_threshold"] = 0
    wait_until_searches_go_to(ALIAS)
    found = similarity_search([1, 0], limit=1)
    assert connections[ALIAS].connection is not None
    assert connections[ALIAS].connection.prepare_threshold == 0
    assert [hit.content for hit in found] == ["Black tea."]


def test_all_but_searches_stays_on_the_primary(replica: Replica) -> None:
    wait_until_searches_go_to(ALIAS)
    assert router.db_for_read(SearchDocument) == "default"
    assert router.db_for_write(SearchDocument, search=True) == "default"
    assert router.allow_migrate(ALIAS, "cartrita_search") is False
    assert SearchRouter().allow_migrate("default", "cartrita_search") is None
    with transaction.atomic():
        SearchDocument.objects.create(source_table="notes", source_id="1", content="tea")
        assert contents() == ["tea"]  # which nobody else can see yet


# --- Late -------------------------------------------------------------------


def test_a_replica_that_lags_is_passed_over_and_comes_back(
    replica: Replica, pg: psycopg.Connection, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cartrita_search.replicas")
    wait_until_searches_go_to(ALIAS)
    limit_lag(settings, 0.5)
    replica.pause()
    store(pg, "New tea.")
    wait_until_searches_go_to("default")
    assert contents() == ["New tea."]
    replica.resume()
    wait_until_searches_go_to(ALIAS)
    assert contents() == ["New tea."]
    told = [r.getMessage() for r in caplog.records if r.name == "cartrita_search.replicas"]
    passed_over = next(n for n, line in enumerate(told) if "behind" in line)
    assert any("again" in line for line in told[passed_over:])


def test_a_primary_that_writes_nothing_makes_no_replica_late(
    replica: Replica, pg: psycopg.Connection, settings: Any
) -> None:
    limit_lag(settings, 0.000_001)
    replica.catch_up(pg)
    wait_until_searches_go_to(ALIAS)


def test_a_primary_under_a_replicas_name_is_passed_over(
    replica: Replica, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here = connection.settings_dict | {"ENGINE": "django.db.backends.postgresql"}
    monkeypatch.setitem(connections.settings, ALIAS, here)
    replicas._begin_afresh()
    deadline = time.monotonic() + 60
    while "it is no replica" not in caplog.text:
        assert replicas.choose() == "default"
        assert time.monotonic() < deadline


def test_replicas_answer_while_the_primary_cannot_be_asked(
    replica: Replica, pg: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(pg, "Steady tea.")
    replica.catch_up(pg)
    monkeypatch.setattr(replicas, "_PRIMARY_STANDS", "SELECT 1 / 0")
    replicas._begin_afresh()
    wait_until_searches_go_to(ALIAS)
    with databases_searched() as searched:
        assert contents() == ["Steady tea."]
    assert searched == [ALIAS]


def test_a_replica_that_is_silent_holds_nobody_up(
    replica: Replica,
    pg: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store(pg, "Steady tea.")

    def contents_elsewhere() -> list[str]:
        try:
            return contents()
        finally:
            connections.close_all()

    with (
        ThreadPoolExecutor(1) as elsewhere,
        socket.create_server(("127.0.0.1", 0)) as silent,  # takes connections, answers none
    ):
        nowhere = connections.settings[ALIAS] | {
            "HOST": "127.0.0.1",
            "PORT": str(silent.getsockname()[1]),
            "OPTIONS": {"connect_timeout": 3600},
        }
        monkeypatch.setitem(connections.settings, ALIAS, nowhere)
        monkeypatch.setattr(replicas, "LOOK_SECONDS", 3600.0)
        replicas._begin_afresh()
        assert contents() == ["Steady tea."]
        assert "it does not answer" in caplog.text
        # Nobody waits for it a second time, while it goes on saying nothing.
        monkeypatch.setattr(replicas, "PATIENCE", 3600.0)
        assert elsewhere.submit(contents_elsewhere).result(60) == ["Steady tea."]


# --- Gone -------------------------------------------------------------------


def test_no_search_fails_while_the_replica_is_killed_and_comes_back(
    replica: Replica, pg: psycopg.Connection
) -> None:
    store(pg, "Steady tea.")
    replica.catch_up(pg)
    wait_until_searches_go_to(ALIAS)
    stop = threading.Event()
    answered = threading.Semaphore(0)

    def search_on() -> set[tuple[str, ...]]:
        found = set()
        try:
            while not stop.is_set():
                found.add(tuple(contents()))
                answered.release()
        finally:
            stop.set()
            connections.close_all()
        return found

    def more_searches() -> None:
        for _ in range(20):
            assert answered.acquire(timeout=60)

    with ThreadPoolExecutor(3) as threads:
        searching = [threads.submit(search_on) for _ in range(3)]
        try:
            more_searches()
            kill(replica)
            more_searches()
            wait_until_searches_go_to("default")
            start(replica)
            wait_until_searches_go_to(ALIAS)
            more_searches()
        finally:
            stop.set()
    assert [one.result() for one in searching] == [{("Steady tea.",)}] * 3


def test_a_search_that_finds_its_connection_broken_is_answered_by_the_primary(
    replica: Replica, pg: psycopg.Connection
) -> None:
    store(pg, "Steady tea.")
    replica.catch_up(pg)
    wait_until_searches_go_to(ALIAS)
    assert contents() == ["Steady tea."]
    pid = connections[ALIAS].connection.info.backend_pid
    with replica.connect() as there:
        there.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
    wait_until_searches_go_to(ALIAS)
    with databases_searched() as searched:
        assert contents() == ["Steady tea."]
    assert searched == ["default"]
    wait_until_searches_go_to(ALIAS)
    with databases_searched() as searched:
        assert contents() == ["Steady tea."]
    assert searched == [ALIAS]


@pytest.mark.usefixtures("replica")
def test_a_statement_that_took_too_long_is_not_begun_anew() -> None:
    tried = []

    def slow(alias: str) -> None:
        tried.append(alias)
        with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
            cursor.execute("SELECT set_config('statement_timeout', '1', true)")
            cursor.execute("SELECT pg_sleep(60)")

    with pytest.raises(OperationalError, match="statement timeout"):
        replicas.read(ALIAS, slow)
    assert tried == [ALIAS]


def test_what_a_late_replica_does_not_know_yet_the_primary_answers(
    replica: Replica, pg: psycopg.Connection
) -> None:
    wait_until_searches_go_to(ALIAS)
    replica.pause()
    store(pg, "Of a new model.")
    with databases_searched() as searched:
        found = similarity_search([1, 0], model="mini")
    assert [hit.content for hit in found] == ["Of a new model."]
    assert searched == ["default"]


# --- Read your writes -------------------------------------------------------


def test_who_wrote_searches_where_it_can_be_found_and_others_on_the_replica(
    replica: Replica,
) -> None:
    wait_until_searches_go_to(ALIAS)
    replica.pause()
    upsert_documents([Document("notes", "1", "Tea", "My tea.")])
    assert contents() == ["My tea."]
    assert Context().run(contents) == []
    assert delete_source("notes") == 1
    assert contents() == []
    replica.resume()
    deadline = time.monotonic() + 60
    while replicas.choose() != ALIAS:
        assert time.monotonic() < deadline


def test_in_a_transaction_the_commit_counts(replica: Replica) -> None:
    wait_until_searches_go_to(ALIAS)
    replica.pause()
    with transaction.atomic():
        upsert_documents([Document("notes", "1", "Tea", "My tea.")])
        assert replicas._last_write.get() is None
    assert contents() == ["My tea."]


def test_a_person_who_wrote_finds_it_with_the_next_request(
    replica: Replica, pg: psycopg.Connection
) -> None:
    wait_until_searches_go_to(ALIAS)
    replica.pause()

    def view(request: HttpRequest) -> HttpResponse:
        if request.method == "POST":
            store(pg, "My tea.")  # by whatever way
        return HttpResponse(",".join(contents()))

    ask = replicas.read_your_writes(view)
    requests = RequestFactory()
    assert ask(requests.get("/")).content == b""
    answer = ask(requests.post("/"))
    assert answer.cookies[replicas.COOKIE]["httponly"]
    hers = RequestFactory()
    hers.cookies[replicas.COOKIE] = answer.cookies[replicas.COOKIE].value
    assert ask(hers.get("/")).content == b"My tea."
    assert replicas.COOKIE not in ask(hers.get("/")).cookies
    assert ask(requests.get("/")).content == b""

    forged = RequestFactory()
    forged.cookies[replicas.COOKIE] = "99999999999999"
    assert ask(forged.get("/")).content == b""
    replica.resume()
    deadline = time.monotonic() + 60
    searched: list[str] = []
    while searched != [ALIAS]:
        assert time.monotonic() < deadline
        with databases_searched() as searched:
            assert ask(hers.get("/")).content == b"My tea."


@pytest.mark.usefixtures("replica")
def test_saving_in_the_admin_leaves_the_cookie() -> None:
    person = User.objects.create_superuser("ada", password="secret")
    client = Client()
    client.force_login(person)
    client.get("/admin/")
    assert replicas.COOKIE not in client.cookies
    client.post("/admin/cartrita_search/searchdocument/add/", {})
    assert replicas.COOKIE in client.cookies


@pytest.mark.usefixtures("replica")
def test_the_middleware_of_an_asynchronous_site() -> None:
    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    async def ask() -> list[bool]:
        site = replicas.read_your_writes(view)
        given = [await site(RequestFactory().post("/")), await site(RequestFactory().get("/"))]
        return [replicas.COOKIE in answer.cookies for answer in given]

    assert asyncio.run(ask()) == [True, False]


# --- Cached answers --------------------------------------------------------------


def test_no_cached_answer_is_stale_where_half_of_the_readers_are_on_a_replica_that_lags(
    replica: Replica, connect: Connect, pg: psycopg.Connection, settings: Any
) -> None:
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"CACHE_SECONDS": 300}

    def found(worker: int, using: str) -> int:
        (hit,) = keyword_search(f"counter{worker}", using=using)
        return int(hit.content)

    with ExitStack() as stack:
        there = [stack.enter_context(replica.connect()) for _ in range(Traffic.WORKERS)]
        traffic = Traffic(connect, ALIAS, there)
        replica.catch_up(pg)
        traffic.run(100, halfway=replica.pause)
    assert traffic.stale == []
    assert traffic.reads == 8 * 200
    traffic.write(0, 101)
    assert found(0, "default") == 101
    assert found(0, ALIAS) < 101
    replica.resume()
    replica.catch_up(pg)
    for worker, last in enumerate(traffic.committed):
        assert found(worker, ALIAS) == found(worker, "default") == last
