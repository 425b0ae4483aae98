"""Cached search results: never older than the last commit, whoever wrote, whatever Redis does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import connection, connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from cartrita_search import cache, metrics, retrieval
from cartrita_search.cache import invalidate
from cartrita_search.errors import InvalidArgument
from cartrita_search.models import CacheInvalidation, RetrievalConfig, SearchDocument
from tests.conftest import Connect, Manage
from tests.postgres import scalar, upsert
from tests.redis_server import RedisServer, caches_at, redis_server
from tests.replica import replica_of

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("clean_tables")]

Search = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def _on(settings: Any) -> None:
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"CACHE_SECONDS": 300}


class Searches:
    """Keyword searches, and for each whether its answer came from the cache."""

    def __init__(self) -> None:
        self.cached: list[bool] = []

    def __call__(self, text: str = "tea", **options: Any) -> list[str]:
        return [hit.content for hit in retrieval.keyword_search(text, **options)]

    def last_was_cached(self) -> bool:
        return self.cached[-1]


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Searches:
    searches = Searches()
    monkeypatch.setattr(metrics, "record", lambda metric: searches.cached.append(metric.cache_hit))
    return searches


@pytest.fixture
def tea(clean_tables: None, pg: psycopg.Connection) -> None:
    upsert(pg, "1", [1, 0], p_title="Tea", p_content="Steep tea.", p_metadata='{"n": 1.5}')


# --- What is kept, and found again ------------------------------------------


@pytest.mark.usefixtures("tea")
def test_an_answer_is_kept_whole_and_found_without_a_search(search: Searches) -> None:
    options: dict[str, Any] = {
        "vector": [0.5, 0.5],
        "model": "mini",
        "explain": True,
        "snippets": True,
        "rerank": True,
    }
    first = retrieval.search("tea", **options)
    with CaptureQueriesContext(connection) as queries:
        # White space makes no other question.
        again = retrieval.search("  tea ", **options)
    assert again == first
    assert first[0].explanation
    assert first[0].snippet
    assert first[0].rerank_score is not None
    assert search.cached == [False, True]
    assert ["search_generation" in query["sql"] for query in queries] == [True]


@pytest.mark.usefixtures("tea")
@pytest.mark.parametrize(
    "other",
    [
        {"limit": 3},
        {"offset": 1},
        {"source": "notes"},
        {"source": ["notes", "books"]},
        {"source": []},
        {"metadata": {"n": 1.5}},
        {"metadata": {}},
        {"tags": ["green"]},
        {"tags": []},
        {"threshold": 0.5},
        {"language": "simple"},
        {"user": 7},
        {"explain": True},
        {"snippets": True},
        {"rerank": True},
        {"model": "mini"},
    ],
    ids=str,
)
def test_what_decides_the_answer_is_in_the_key(search: Searches, other: dict[str, Any]) -> None:
    search()
    search(**other)
    search(**other)
    search()
    assert search.cached == [False, False, True, True]


@pytest.mark.usefixtures("tea")
def test_kinds_weights_and_vectors_are_in_the_key(search: Searches) -> None:
    for _ in range(2):
        retrieval.search("tea", vector=[1, 0], model="mini")
        retrieval.search("tea", vector=[0, 1], model="mini")
        retrieval.search("tea", vector=[0, 1], model="mini", vector_weight=0.5)
        retrieval.search("tea", vector=[0, 1], model="mini", fusion="rrf")
        retrieval.similarity_search([0, 1], model="mini")
        retrieval.keyword_search("tea")
    assert search.cached == [False] * 6 + [True] * 6


@pytest.mark.usefixtures("tea")
def test_other_code_and_other_settings_have_other_answers(
    search: Searches, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    search()
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"RERANK_DEPTH": 7}
    search()
    monkeypatch.setattr(cache, "_code_version", lambda: b"the next release")
    search()
    assert search.cached == [False, False, False]


@pytest.mark.usefixtures("tea")
def test_zero_seconds_or_no_such_cache_keep_nothing(search: Searches, settings: Any) -> None:
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"CACHE_SECONDS": 0}
    with CaptureQueriesContext(connection) as queries:
        search()
        search()
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"CACHE_SECONDS": 300}
    settings.CACHES = {"default": settings.CACHES["default"]}
    search()
    search()
    assert search.cached == [False] * 4
    assert len(queries) == 2  # no generation is read either


def test_a_refused_search_leaves_nothing_behind(search: Searches) -> None:
    for _ in range(2):
        with pytest.raises(InvalidArgument):
            search(language="klingon")
    with pytest.raises(InvalidArgument):
        search(metadata={"a": object()})
    assert search.cached == []


# --- Never stale ------------------------------------------------------------


WRITES: dict[str, Sequence[str]] = {
    "delete": ["DELETE FROM search_documents"],
    "truncate": ["TRUNCATE search_documents CASCADE"],
    "vectors": ["UPDATE embeddings SET embedding = '[0,1]'"],
    "statistics": ["SELECT refresh_keyword_statistics()"],
    "model": ["UPDATE embedding_models SET ef_search = 77"],
    "settings": ["UPDATE search_settings SET candidate_pool = candidate_pool + 1"],
    "migration": ["UPDATE schema_migrations SET checksum = checksum WHERE version LIKE '0001%'"],
    "as a replica": ["SET session_replication_role = replica", "DELETE FROM embeddings"],
    "rebuild": ["SELECT rebuild_vector_indexes()"],
    "repeatable read": [
        "BEGIN ISOLATION LEVEL REPEATABLE READ",
        "UPDATE embeddings SET embedding = '[0,1]'",
        "COMMIT",
    ],
    "savepoint": [
        "BEGIN",
        "SAVEPOINT a",
        "UPDATE embeddings SET embedding = '[0,2]'",
        "ROLLBACK TO a",
        "UPDATE embeddings SET embedding = '[0,1]'",
        "COMMIT",
    ],
}


@pytest.mark.usefixtures("tea")
@pytest.mark.parametrize("write", WRITES)
def test_after_any_write_that_decides_an_answer_it_is_made_anew(
    pg: psycopg.Connection, search: Searches, write: str
) -> None:
    search()
    search()
    for statement in WRITES[write]:
        pg.execute(statement)
    search()
    search()
    assert search.cached == [False, True, False, True]


@pytest.mark.usefixtures("tea")
def test_what_changes_no_row_or_no_answer_leaves_the_cache_alone(
    connect: Connect, search: Searches
) -> None:
    search()
    pg = connect()  # one that has not written: what it did a moment ago would count
    upsert(pg, "1", [1, 0], p_title="Tea", p_content="Steep tea.", p_metadata='{"n": 1.5}')
    pg.execute("UPDATE search_documents SET title = 'x' WHERE false")
    with pg.transaction():
        # A transaction that has written something else.
        pg.execute("INSERT INTO source_checkpoints (source_table) VALUES ('notes')")
        pg.execute("DELETE FROM embeddings WHERE false")
    pg.execute("INSERT INTO retrieval_configs (user_id) VALUES (7)")
    search()
    with pg.transaction(force_rollback=True):
        upsert(pg, "2", [0, 1], p_title="Tea", p_content="More tea.")
    assert search() == ["Steep tea."]
    assert search.cached == [False, True, True]


@pytest.mark.usefixtures("tea")
def test_a_persons_configuration_concerns_searches_for_people(search: Searches) -> None:
    ada = User.objects.create_user("ada")
    search(user=ada)
    search()
    RetrievalConfig.objects.create(user=ada, max_results=1)
    search(user=ada)
    search()
    assert search.cached == [False, False, False, True]


@pytest.mark.usefixtures("tea")
def test_a_transaction_that_has_written_sees_its_own_and_shows_nobody(
    pg: psycopg.Connection, search: Searches
) -> None:
    with transaction.atomic():
        assert search() == ["Steep tea."]
        assert search() == ["Steep tea."]
        SearchDocument.objects.update(content="Iced tea.")
        assert search() == ["Iced tea."]
        assert search() == ["Iced tea."]
        transaction.set_rollback(True)
    assert search() == ["Steep tea."]
    assert search.cached == [False, True, False, False, True]


@pytest.mark.usefixtures("tea")
def test_a_snapshot_from_before_a_write_does_not_hide_it(
    pg: psycopg.Connection, search: Searches
) -> None:
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        assert search() == ["Steep tea."]
        pg.execute("UPDATE search_documents SET content = 'Iced tea.'")
        assert search() == ["Steep tea."]
    assert search() == ["Iced tea."]
    assert search.cached == [False, True, False]


def generation(pg: psycopg.Connection) -> str:
    return str(scalar(pg, "SELECT search_generation('{identity,documents,models,sources}')"))


@pytest.mark.usefixtures("tea")
def test_a_writer_s_own_search_path_is_no_matter(pg: psycopg.Connection, connect: Connect) -> None:
    before = generation(pg)
    writer = connect(autocommit=False)
    writer.execute(
        "CREATE TEMPORARY TABLE search_generations (LIKE public.search_generations);"
        "SET LOCAL search_path = ''"
    )
    writer.execute("UPDATE public.search_documents SET content = 'Iced tea.'")
    writer.commit()
    assert generation(pg) != before


@pytest.mark.usefixtures("tea")
def test_writers_wait_for_nobody_however_many_are_open(
    pg: psycopg.Connection, connect: Connect
) -> None:
    slots = scalar(pg, "SELECT generation_slots('documents')")
    writers = [connect(autocommit=False, options="-c lock_timeout=5s") for _ in range(slots + 4)]
    for number, writer in enumerate(writers):
        upsert(writer, f"w{number}", [0, 1])
    seen = [generation(pg)]
    for writer in writers:
        writer.commit()
        seen.append(generation(pg))
    assert len(set(seen)) == len(writers) + 1


@pytest.mark.usefixtures("tea")
def test_former_stamps_do_not_pile_up(pg: psycopg.Connection) -> None:
    kept = "SELECT count(*) FROM search_generations WHERE namespace = 'documents'"
    before = scalar(pg, kept)  # in other writers' slots, by the tests before
    with pg.pipeline():
        for _ in range(2000):
            pg.execute("SELECT advance_generation('documents')")
    assert scalar(pg, kept) - before < 500


def test_stamps_of_writers_without_a_slot_are_swept_up(
    pg: psycopg.Connection, connect: Connect
) -> None:
    holder = connect(autocommit=False)
    holder.execute("SELECT advance_generation('models')")
    with pg.pipeline():
        for _ in range(1000):
            pg.execute("SELECT advance_generation('models')")
    before = generation(pg)
    assert len(before.split()) < 500
    holder.commit()
    assert generation(pg) != before


@pytest.mark.usefixtures("tea")
def test_a_sequence_left_behind_by_a_load_is_put_right(
    pg: psycopg.Connection, search: Searches
) -> None:
    pg.execute(
        "INSERT INTO search_generations (namespace, slot, revision) OVERRIDING SYSTEM VALUE "
        "VALUES ('identity', 0, (SELECT max(revision) + 1000000 FROM search_generations))"
    )
    search()
    pg.execute("SELECT renew_cache_identity()")
    search()
    assert search.cached == [False, False]
    assert CacheInvalidation.objects.get().invalidation_reason == "restore"


class Traffic:
    """Writers that each count up in a document of their own, and readers who must keep up."""

    WORKERS = 8

    def __init__(
        self, connect: Connect, replica: str = "", there: Sequence[psycopg.Connection] = ()
    ) -> None:
        """Every other reader is on the replica, if there is one: its alias, and connections."""
        self.writers = [connect() for _ in range(self.WORKERS)]
        self.replica = replica
        self.there = there
        #: The last number that is known to be committed.
        self.committed = [0] * self.WORKERS
        self.stale: list[tuple[int, int]] = []
        self.reads = 0
        for worker in range(self.WORKERS):
            self.write(worker, 0)

    def write(self, worker: int, number: int) -> None:
        upsert(
            self.writers[worker],
            str(worker),
            [1, 0],
            p_title=f"counter{worker}",
            p_content=str(number),
        )
        self.committed[worker] = number

    def read(self, reader: int, worker: int) -> None:
        using, known = "default", self.committed[worker]
        if self.replica and reader % 2:
            # No older than what the replica itself has come to.
            using = self.replica
            known = int(
                scalar(
                    self.there[reader],
                    "SELECT content FROM search_documents WHERE source_id = %s",
                    [str(worker)],
                )
            )
        (hit,) = retrieval.keyword_search(f"counter{worker}", using=using)
        self.reads += 1
        if int(hit.content) < known:
            self.stale.append((int(hit.content), known))

    def run(self, operations: int, halfway: Callable[[], object] = lambda: None) -> None:
        """So many writes by each writer, and as many reads by each reader, all at once."""

        def write(worker: int) -> None:
            for number in range(1, operations + 1):
                self.write(worker, number)

        def read(reader: int) -> None:
            try:
                for number in range(operations):
                    if reader == 0 and number == operations // 2:
                        halfway()
                    # A document that others read too, twice: the second time from the cache.
                    for _ in range(2):
                        self.read(reader, number % self.WORKERS)
            finally:
                connections.close_all()

        with ThreadPoolExecutor(2 * self.WORKERS) as pool:
            done = [pool.submit(write, worker) for worker in range(self.WORKERS)]
            done += [pool.submit(read, worker) for worker in range(self.WORKERS)]
            for future in done:
                future.result()


@pytest.mark.slow
def test_eight_writers_and_eight_readers_never_meet_a_stale_answer(
    connect: Connect, search: Searches
) -> None:
    traffic = Traffic(connect)
    traffic.run(150)
    assert traffic.stale == []
    assert traffic.reads == 8 * 300
    assert any(search.cached)
    for worker in range(traffic.WORKERS):
        assert search(f"counter{worker}") == ["150"]


@pytest.fixture
def redis(settings: Any) -> Iterator[RedisServer]:
    """A Redis of the test's own, in use by both caches."""
    with redis_server() as server:
        settings.CACHES = caches_at(server.url, settings.CACHES)
        yield server


@pytest.mark.slow
def test_nor_when_redis_is_killed_and_comes_back_midway(
    connect: Connect, search: Searches, redis: RedisServer
) -> None:
    traffic = Traffic(connect)

    def restart() -> None:
        redis.kill()
        redis.start()

    traffic.run(100, halfway=restart)
    assert traffic.stale == []
    for worker in range(traffic.WORKERS):
        assert search(f"counter{worker}") == ["100"]


@pytest.mark.slow
def test_a_lagging_replica_has_its_own_answers(
    database: dict[str, Any], pg: psycopg.Connection, search: Searches
) -> None:
    upsert(pg, "1", [1, 0], p_title="Tea", p_content="Steep tea.")
    with replica_of(database) as replica:
        there = connection.settings_dict | {"HOST": replica.parameters["host"]}
        reads = DatabaseWrapper(there, "default")
        primary = connections["default"]

        def search_there() -> list[str]:
            connections["default"] = reads
            try:
                return search()
            finally:
                connections["default"] = primary

        with closing(reads):
            replica.catch_up(pg)
            assert search_there() == search() == ["Steep tea."]
            # The same state of the same database: one answer for both.
            assert search.cached == [False, True]

            replica.pause()
            pg.execute("UPDATE search_documents SET content = 'Iced tea.'")
            assert search() == ["Iced tea."]
            assert search_there() == ["Steep tea."]
            assert search() == ["Iced tea."]
            replica.resume()
            replica.catch_up(pg)
            assert search_there() == ["Iced tea."]
            assert search.cached[2:] == [False, True, True, True]


# --- Whose answer -----------------------------------------------------------


def keys(server: RedisServer) -> list[bytes]:
    with server.client() as client:
        return sorted(key for key in client.keys("*") if not key.endswith(b"lock"))


def test_nobody_gets_another_persons_answer(
    pg: psycopg.Connection,
    search: Searches,
    redis: RedisServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache, "_complained", set())
    upsert(pg, "a", [1, 0], p_title="Tea", p_content="Ada's tea.", p_user_id=1)
    upsert(pg, "b", [1, 0], p_title="Tea", p_content="Bob's tea.", p_user_id=2)
    assert search(user=1) == ["Ada's tea."]
    (hers,) = keys(redis)
    assert search(user=2) == ["Bob's tea."]
    (his,) = set(keys(redis)) - {hers}

    with redis.client() as client:
        assert b"tea" not in hers.lower()
        stored = client.get(hers)
        assert isinstance(stored, bytes)
        assert b"Ada's tea." in stored
        client.set(his, stored)  # whoever can write there
    with caplog.at_level(logging.WARNING, "cartrita_search.cache"):
        assert search(user=2) == ["Bob's tea."]
    assert "another key" in caplog.text
    assert search(user=2) == ["Bob's tea."]
    assert search.cached == [False, False, False, True]


@pytest.mark.usefixtures("tea")
@pytest.mark.parametrize("value", [b"\x80\x04N.", b"\xc1", b"17", b"\x91\xa1x", b"\x92"])
def test_what_cannot_be_read_is_made_anew_and_logged_once(
    search: Searches,
    redis: RedisServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    value: bytes,
) -> None:
    monkeypatch.setattr(cache, "_complained", set())
    search()
    (key,) = keys(redis)
    with caplog.at_level(logging.WARNING, "cartrita_search.cache"), redis.client() as client:
        for _ in range(2):
            client.set(key, value)
            assert search() == ["Steep tea."]
    assert search() == ["Steep tea."]
    assert search.cached == [False, False, False, True]
    assert len(caplog.records) == 1


@pytest.mark.usefixtures("tea")
def test_what_is_too_large_is_not_kept_and_nobody_waits_for_it(
    search: Searches, redis: RedisServer, settings: Any
) -> None:
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"CACHE_MAX_BYTES": 100}
    for _ in range(2):
        assert search() == ["Steep tea."]
    assert search.cached == [False, False]
    (key,) = keys(redis)
    with redis.client() as client:
        assert client.strlen(key) < 100
        assert 0 < client.ttl(key) <= 300
        assert not client.exists(key + b".lock")


class Burst:
    """So many equal searches at once, and how often the database was asked.

    It answers when it was asked so often as is ``enough``.
    """

    def __init__(
        self, searches: int, search: Searches, monkeypatch: pytest.MonkeyPatch, enough: int = 1
    ) -> None:
        self.searches, self.search = searches, search
        self.computed: list[None] = []
        may_answer = threading.Event()
        page = retrieval._page

        def counted(*arguments: Any) -> Any:
            self.computed.append(None)
            if len(self.computed) >= enough:
                may_answer.set()
            assert may_answer.wait(60)
            return page(*arguments)

        monkeypatch.setattr(retrieval, "_page", counted)

    def run(self) -> list[list[str]]:
        all_here = threading.Barrier(self.searches)

        def one(_: int) -> list[str]:
            try:
                all_here.wait(60)
                return self.search()
            finally:
                connections.close_all()

        with ThreadPoolExecutor(self.searches) as pool:
            return list(pool.map(one, range(self.searches)))


@pytest.mark.usefixtures("tea")
def test_fifty_equal_searches_at_once_are_one(
    search: Searches, monkeypatch: pytest.MonkeyPatch
) -> None:
    burst = Burst(50, search, monkeypatch)
    assert burst.run() == [["Steep tea."]] * 50
    assert len(burst.computed) == 1
    assert sorted(search.cached) == [False] + [True] * 49


@pytest.mark.usefixtures("tea")
def test_of_equal_searches_that_take_long_one_at_a_time_begins(
    search: Searches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "TURN_SECONDS", 0.5)
    burst = Burst(20, search, monkeypatch, enough=3)
    assert burst.run() == [["Steep tea."]] * 20
    assert 3 <= len(burst.computed) <= 10


# --- Invalidation -----------------------------------------------------------


def logged() -> list[tuple[str | None, str | None, str]]:
    return list(
        CacheInvalidation.objects.order_by("id").values_list(
            "cache_namespace", "cache_key", "invalidation_reason"
        )
    )


@pytest.mark.usefixtures("tea")
@pytest.mark.parametrize(
    ("target", "name", "fresh"),
    [
        ({"namespace": "identity"}, "identity", [True, True, True, True]),
        ({"namespace": "documents"}, "documents", [True, True, True, True]),
        ({"namespace": "configs"}, "configs", [False, True, True, False]),
        ({"user": 1}, "user:1", [False, True, False, False]),
        ({"source": "notes"}, "source:notes", [True, True, True, True]),
        ({"source": "books"}, "source:books", [True, True, True, False]),
    ],
)
def test_an_invalidation_reaches_whom_it_names_and_leaves_a_row(
    search: Searches, target: dict[str, Any], name: str, fresh: list[bool]
) -> None:
    asked: list[dict[str, Any]] = [{}, {"user": 1}, {"user": 2}, {"source": "notes"}]
    for options in asked:
        search(**options)
    row = invalidate(**target, reason="a test", by="ada", metadata={"why": "so"})
    assert row.cache_namespace == name
    search.cached.clear()
    for options in asked:
        search(**options)
    assert [not hit for hit in search.cached] == fresh
    assert logged() == [(name, None, "a test")]
    row = CacheInvalidation.objects.get()
    assert (row.invalidated_by, row.metadata) == ("ada", {"why": "so"})


@pytest.mark.usefixtures("tea")
def test_in_sql_a_source_is_what_it_is_in_python_and_a_typo_is_refused(
    pg: psycopg.Connection, search: Searches
) -> None:
    search()
    search(source="notes")
    for typo in ("document", "documents\n", "user:ada", "source:", "", "my user:1"):
        with pytest.raises(psycopg.DatabaseError, match="There is no namespace") as refused:
            pg.execute("SELECT invalidate_search_cache(%s, 'a test')", [typo])
        assert refused.value.sqlstate == InvalidArgument.code
    assert logged() == []
    search()
    pg.execute("SELECT invalidate_search_cache('source:notes', 'a test')")
    search()
    search(source="notes")
    assert search.cached == [False, False, True, False, False]
    assert logged() == [("source:notes", None, "a test")]


@pytest.mark.usefixtures("tea")
def test_one_entry_is_invalidated_by_its_key(search: Searches, redis: RedisServer) -> None:
    search()
    search(limit=1)
    key = keys(redis)[0].decode().rsplit(":", 1)[1]
    assert invalidate(key=key, reason="a test").cache_key == key
    search.cached.clear()
    search()
    search(limit=1)
    assert sorted(search.cached) == [False, True]
    assert logged() == [(None, key, "a test")]


@pytest.mark.parametrize(
    "target",
    [
        {},
        {"namespace": "identity", "user": 1},
        {"namespace": "documents'"},
        {"user": "ada"},
        {"user": User()},
        {"source": ""},
        {"source": ["notes"]},
        {"key": ""},
        {"key": "cartrita-search:1:" + "0" * 32},
    ],
    ids=str,
)
def test_an_invalidation_of_nothing_is_refused(target: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="Nothing was changed"):
        invalidate(**target, reason="a test")
    with pytest.raises(InvalidArgument, match="reason"):
        invalidate("identity", reason=" ")
    assert logged() == []


def test_changes_that_concern_many_answers_are_logged_whoever_makes_them(
    pg: psycopg.Connection,
) -> None:
    upsert(pg, "1", [1, 0], "old")
    upsert(pg, "1", [1, 0], "new")
    pg.execute("UPDATE embedding_models SET is_default = false")
    pg.execute("UPDATE embedding_models SET is_default = true WHERE name = 'new'")
    pg.execute("INSERT INTO retrieval_configs (user_id, max_results) VALUES (7, 5)")
    pg.execute("UPDATE retrieval_configs SET max_results = 6")
    pg.execute("DELETE FROM retrieval_configs")
    pg.execute("UPDATE search_settings SET candidate_pool = candidate_pool + 1")
    pg.execute("UPDATE search_settings SET candidate_pool = candidate_pool")
    pg.execute("SELECT rebuild_vector_indexes('old')")
    assert [
        (row.cache_namespace, row.invalidation_reason, row.metadata)
        for row in CacheInvalidation.objects.order_by("id")
        if row.metadata.pop("config", True)
    ] == [
        ("models", "model_switch", {"model": "new"}),
        ("configs", "config_change", {"operation": "insert", "user": 7}),
        ("configs", "config_change", {"operation": "update", "user": 7}),
        ("configs", "config_change", {"operation": "delete", "user": 7}),
        ("models", "settings_change", {"operation": "update"}),
        ("models", "rebuild", {"model": "old"}),
    ]


def test_the_command_invalidates_and_says_what(manage: Manage) -> None:
    done = manage("invalidate_search_cache", "--source", "notes", "--reason", "wrong texts")
    assert (done.returncode, done.stderr) == (0, "")
    assert "source:notes" in done.stdout
    row = CacheInvalidation.objects.get()
    assert (row.cache_namespace, row.invalidation_reason) == ("source:notes", "wrong texts")
    assert "@" in row.invalidated_by

    assert manage("invalidate_search_cache").returncode == 2
    done = manage("invalidate_search_cache", "--key", "cartrita-search:1:0")
    assert (done.returncode, done.stdout) == (1, "")
    assert "32 hexadecimal digits. Nothing was changed." in done.stderr
    done = manage("invalidate_search_cache", "--key", "0" * 32, REDIS_URL="redis://127.0.0.1:1/0")
    assert done.returncode == 75
    assert "Traceback" not in done.stderr
    assert "Redis does not answer" in done.stderr
    assert CacheInvalidation.objects.count() == 1


def test_the_admin_invalidates_and_knows_by_whom(admin_client: Any) -> None:
    page = reverse("admin:cartrita_search_cacheinvalidation_add")
    assert admin_client.get(page).status_code == 200
    sent = {"namespace": "documents", "invalidation_reason": "a wrong import"}
    assert admin_client.post(page, sent).status_code == 302
    row = CacheInvalidation.objects.get()
    assert (row.cache_namespace, row.invalidated_by) == ("documents", "admin")

    response = admin_client.post(page, {"invalidation_reason": "a wrong import"})
    assert response.status_code == 200
    assert "One of" in response.content.decode()
    assert CacheInvalidation.objects.count() == 1


@pytest.mark.usefixtures("tea")
def test_the_admin_invalidates_the_same_again(
    admin_client: Any, search: Searches, redis: RedisServer, settings: Any
) -> None:
    search(user=1)
    (name,) = keys(redis)
    rows = [
        invalidate(user=1, reason="a test"),
        invalidate(user=1, reason="a test"),
        invalidate(source="notes", reason="a test"),
        invalidate(key=name.decode().rsplit(":", 1)[1], reason="a test"),
        CacheInvalidation.objects.create(cache_namespace="user:ada", invalidation_reason="v1's"),
    ]
    search(user=1)
    search(user=1)

    page = reverse("admin:cartrita_search_cacheinvalidation_changelist")
    sent = {"action": "invalidate_again", "_selected_action": [row.pk for row in rows]}
    response = admin_client.post(page, sent, follow=True)
    assert [str(message).partition(".")[0] for message in response.context["messages"]] == [
        "Invalidated: user:1",
        "Invalidated: source:notes",
        f"Invalidated: {rows[3].cache_key}",
        'There is no namespace "user:ada"',
    ]
    search(user=1)
    assert search.cached == [False, False, True, False]
    added = CacheInvalidation.objects.order_by("id")[len(rows) :]
    assert [row.cache_namespace for row in added] == ["user:1", "source:notes", None]
    assert {row.invalidated_by for row in added} == {"admin"}

    settings.CACHES = settings.CACHES | {
        "search": settings.CACHES["search"] | {"LOCATION": "redis://127.0.0.1:1/0"}
    }
    sent["_selected_action"] = [rows[3].pk]
    response = admin_client.post(page, sent, follow=True)
    assert "Redis does not answer" in response.text
    assert CacheInvalidation.objects.count() == len(rows) + 3
