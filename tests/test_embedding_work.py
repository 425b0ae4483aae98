"""Embedding what is missing or stale: real workers, a real provider, a real database."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, Protocol

import psycopg
import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import override_settings
from psycopg import sql
from tenacity import wait_none

from cartrita_search import embedding_work as module
from cartrita_search.db import grant_to_role
from cartrita_search.embedding_work import (
    SourceWork,
    SyncOutcome,
    embedding_text,
    embedding_work,
    sync_embeddings,
)
from cartrita_search.errors import (
    DimensionMismatch,
    EmbedderOverloaded,
    EmbedderUnavailable,
    InvalidArgument,
)
from cartrita_search.management.commands import sync_embeddings as command
from tests.conftest import Connect, Manage
from tests.embedding_server import KEY, Answer, EmbeddingServer, embedding_server, unit, vector
from tests.postgres import row_versions, scalar, upsert, vector_text, wait_until_blocked

pytestmark = pytest.mark.usefixtures("clean_tables")

in_process = pytest.mark.django_db(transaction=True)


class Start(Protocol):
    """Starts ``manage.py sync_embeddings`` and does not wait for it."""

    def __call__(self, *arguments: str) -> subprocess.Popen[str]: ...


@pytest.fixture
def service() -> Iterator[EmbeddingServer]:
    with embedding_server() as server:
        yield server


def embedder(service: EmbeddingServer, **options: Any) -> dict[str, Any]:
    """The settings that name the service as the embedder."""
    options = {"model": "hosted", "dimensions": 8, "max_retries": 0} | options
    return {
        "EMBEDDER": "cartrita_search.embedders.OpenAIEmbedder",
        "EMBEDDER_OPTIONS": {"base_url": service.url, "api_key": KEY} | options,
    }


def variables(service: EmbeddingServer, **options: Any) -> dict[str, str]:
    """The same for the environment of a process."""
    named = embedder(service, **options)
    return named | {"EMBEDDER_OPTIONS": json.dumps(named["EMBEDDER_OPTIONS"])}


@pytest.fixture
def start(service: EmbeddingServer, manage_environment: dict[str, str]) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def _start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "manage.py", "sync_embeddings", *arguments],
            cwd=settings.BASE_DIR,
            env=manage_environment | variables(service) | {"PGAPPNAME": "worker"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield _start
    for process in started:
        process.kill()
        process.communicate()


def sync(service: EmbeddingServer, **options: Any) -> SyncOutcome:
    with override_settings(CARTRITA_SEARCH=embedder(service)):
        return sync_embeddings(**options)


def store(pg: psycopg.Connection, count: int, source: str = "notes") -> list[str]:
    """So many documents without vectors; what is to be embedded of each."""
    with pg.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO search_documents (source_table, source_id, title, content) "
            "VALUES (%s, %s, %s, 'text')",
            [(source, str(number), f"{source} {number}") for number in range(count)],
        )
    return [f"{source} {number}\ntext" for number in range(count)]


def stored(pg: psycopg.Connection, model: str = "hosted") -> set[str]:
    """The texts whose vector is that of their present text."""
    rows = pg.execute(
        "SELECT d.title || E'\\n' || d.content, e.embedding::text FROM embeddings AS e "
        "JOIN search_documents AS d ON d.id = e.document_id AND d.content_hash = e.content_hash "
        "WHERE e.embedding_model = %s",
        [model],
    ).fetchall()
    for text, found in rows:
        assert json.loads(found) == pytest.approx(unit(vector(text, 8)), abs=1e-6)
    return {text for text, _ in rows}


def asked(service: EmbeddingServer) -> Counter[str]:
    """How often each text was sent to the service, answered or not."""
    return Counter(text for body in service.bodies for text in body["input"])


def refusals(pg: psycopg.Connection) -> list[tuple[Any, ...]]:
    return pg.execute(
        "SELECT d.title, r.embedding_model, r.error_code, r.message, r.worker "
        "FROM embedding_refusals AS r JOIN search_documents AS d ON d.id = r.document_id "
        "ORDER BY d.title"
    ).fetchall()


# --- What is embedded ---------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "content", "text"),
    [
        ("Tea", "Steep it.", "Tea\nSteep it."),
        ("", "Steep it.\n", "Steep it."),
        (" Tea ", "", "Tea"),
        ("", " \n", ""),
    ],
)
def test_the_text_of_a_document_is_its_title_and_its_content(
    title: str, content: str, text: str
) -> None:
    assert embedding_text(title, content) == text


@in_process
def test_missing_and_stale_vectors_are_made_and_the_rest_is_left_alone(
    service: EmbeddingServer, pg: psycopg.Connection
) -> None:
    for name in ("fresh", "stale"):
        old = vector(f"{name}\ntext", 8)
        upsert(pg, name, unit(old), "hosted", p_title=name, p_content="text")
    pg.execute("UPDATE search_documents SET title = 'newer' WHERE source_id = 'stale'")
    upsert(pg, "other", [1, 2], "other", p_title="other", p_content="text")
    before = row_versions(pg, "embeddings")
    documents = row_versions(pg, "search_documents")
    assert embedding_work("hosted") == [SourceWork("notes", 3, 1, 1, 0)]

    finished: list[int] = []
    outcome = sync(service, progress=finished.append)

    assert (outcome.model, outcome.embedded, outcome.refused) == ("hosted", 2, 0)
    assert (outcome.remaining, outcome.set_aside) == (0, 0)
    assert asked(service) == {"newer\ntext": 1, "other\ntext": 1}
    assert stored(pg) == {"fresh\ntext", "newer\ntext", "other\ntext"}
    assert finished == [2]
    after = row_versions(pg, "embeddings")
    assert len([key for key in before if after[key] != before[key]]) == 1
    assert {key: ctid for key, (_, ctid) in row_versions(pg, "search_documents").items()} == {
        key: ctid for key, (_, ctid) in documents.items()
    }

    assert sync(service).embedded == 0
    assert len(service.bodies) == 1


@in_process
def test_only_the_source_that_is_named(service: EmbeddingServer, pg: psycopg.Connection) -> None:
    notes, letters = store(pg, 3), store(pg, 2, "letters")
    outcome = sync(service, source="letters", model="hosted")
    assert (outcome.embedded, outcome.remaining) == (2, 0)
    assert stored(pg) == set(letters)
    assert sync(service, batch_size=2).embedded == 3
    assert stored(pg) == {*notes, *letters}
    assert [len(body["input"]) for body in service.bodies] == [2, 2, 1]


@in_process
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "other"}, 'is that of model "hosted", not of "other"'),
        ({"source": "absent"}, 'no documents of source "absent"'),
        ({"workers": 0}, "workers must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
    ],
)
def test_what_is_refused_before_anything_is_done(
    service: EmbeddingServer, pg: psycopg.Connection, options: dict[str, Any], message: str
) -> None:
    store(pg, 1)
    with pytest.raises(InvalidArgument, match=message):
        sync(service, **options)
    assert service.bodies == []
    assert scalar(pg, "SELECT count(*) FROM embedding_models") == 0


@in_process
def test_a_model_of_other_dimensions_is_not_mixed_with(
    service: EmbeddingServer, pg: psycopg.Connection
) -> None:
    upsert(pg, "old", [1, 2, 3], "hosted")
    store(pg, 1)
    with pytest.raises(DimensionMismatch, match='of 8 dimensions, but model "hosted" has 3'):
        sync(service)
    slip = embedder(service, dimensions=16_001)
    with (
        override_settings(CARTRITA_SEARCH=slip),
        pytest.raises(DimensionMismatch, match="pgvector holds 1 to 16000"),
    ):
        sync_embeddings()
    assert service.bodies == []


# --- Sharing the work ---------------------------------------------------------


@in_process
def test_threads_share_the_work(service: EmbeddingServer, pg: psycopg.Connection) -> None:
    texts = store(pg, 60)
    release = threading.Event()
    service.script.extend([Answer(release=release)] * 4)
    finished: list[int] = []

    def run() -> SyncOutcome:
        with closing(connection):
            return sync(service, workers=4, batch_size=7, progress=finished.append)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        for _ in range(4):  # all four have a batch of their own in hand
            assert service.arrived.acquire(timeout=30)
        assert sum(asked(service).values()) == 28
        release.set()
        outcome = running.result(timeout=60)
    assert (outcome.embedded, outcome.remaining) == (60, 0)
    assert asked(service) == dict.fromkeys(texts, 1)
    assert stored(pg) == set(texts)
    assert sum(finished) == 60


def test_processes_share_the_work(
    service: EmbeddingServer, start: Start, pg: psycopg.Connection
) -> None:
    texts = store(pg, 60)
    release = threading.Event()
    service.script.extend([Answer(release=release)] * 4)
    processes = [start("--workers", "2", "--batch-size", "5", "--json") for _ in range(2)]
    for _ in range(4):
        assert service.arrived.acquire(timeout=60)
    release.set()
    outcomes = []
    for process in processes:
        said, complaints = process.communicate(timeout=60)
        assert process.returncode == 0, complaints
        outcomes.append(json.loads(said))
    assert sum(outcome["embedded"] for outcome in outcomes) == 60
    assert all(outcome["embedded"] >= 10 for outcome in outcomes)
    assert asked(service) == dict.fromkeys(texts, 1)
    assert stored(pg) == set(texts)


CLAIM = "SELECT document_id, title FROM claim_embedding_work('hosted', {})"


def titles(pg: psycopg.Connection, arguments: str) -> list[str]:
    statement = sql.SQL(CLAIM).format(sql.SQL(arguments))
    return [title for _, title in pg.execute(statement)]


def test_a_claim_is_others_no_more_until_the_transaction_ends(
    pg: psycopg.Connection, connect: Connect
) -> None:
    store(pg, 5)
    one, other = connect(autocommit=False), connect(autocommit=False)
    first, second = titles(one, "3"), titles(other, "3")
    assert (len(first), len(second)) == (3, 2)
    assert not {*first} & {*second}
    assert titles(pg, "3") == []
    one.rollback()
    assert set(titles(pg, "5")) == set(first)


def test_a_claim_goes_on_after_an_id_and_in_the_order_of_ids(pg: psycopg.Connection) -> None:
    store(pg, 5)
    ids = [key for (key,) in pg.execute("SELECT id FROM search_documents ORDER BY id")]
    claimed = pg.execute("SELECT document_id FROM claim_embedding_work('hosted', 2, %s)", [ids[1]])
    assert [key for (key,) in claimed] == ids[2:4]


@pytest.fixture
def paused_reader(pg: psycopg.Connection) -> Iterator[str]:
    """A role whose look at a document waits while somebody holds advisory lock 4711."""
    role = "test paused reader"
    name = sql.Identifier(role)
    pg.execute(sql.SQL("CREATE ROLE {}").format(name))
    pg.execute(
        "CREATE FUNCTION public.pause() RETURNS boolean LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN true; END'"
    )
    pg.execute(
        sql.SQL("CREATE POLICY paused ON search_documents TO {} USING (pause())").format(name)
    )
    pg.execute("ALTER TABLE search_documents ENABLE ROW LEVEL SECURITY")
    yield role
    pg.execute("SET lock_timeout = '10s'")  # after a failure, rather than wait for ever
    pg.execute("ALTER TABLE search_documents DISABLE ROW LEVEL SECURITY")
    pg.execute("DROP POLICY paused ON search_documents")
    pg.execute("DROP FUNCTION public.pause()")
    pg.execute(sql.SQL("DROP OWNED BY {}").format(name))
    pg.execute(sql.SQL("DROP ROLE {}").format(name))


@in_process
def test_what_was_embedded_between_the_snapshot_and_the_lock_is_not_claimed(
    pg: psycopg.Connection, connect: Connect, paused_reader: str
) -> None:
    grant_to_role(connection, paused_reader)
    pg.execute("SELECT register_embedding_model('hosted', 8)")
    store(pg, 3)
    one, other = connect(autocommit=False), connect(autocommit=False)
    other.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(paused_reader)))

    claimed = one.execute(
        "SELECT document_id, content_hash FROM claim_embedding_work('hosted', 2)"
    ).fetchall()
    assert len(claimed) == 2
    pg.execute("SELECT pg_advisory_lock(4711)")
    with ThreadPoolExecutor(1) as pool:
        # Its first statement has its snapshot, and has locked nothing.
        waiting = pool.submit(titles, other, "3")
        wait_until_blocked(pg, other.info.backend_pid)
        for key, content_hash in claimed:
            one.execute(
                "INSERT INTO embeddings (document_id, embedding_model, embedding, content_hash) "
                "VALUES (%s, 'hosted', %s, %s)",
                [key, vector_text(range(1, 9)), content_hash],
            )
        one.commit()
        pg.execute("SELECT pg_advisory_unlock(4711)")
        assert len(waiting.result(timeout=30)) == 1
    # The two are locked all the same: it saw them without a vector.
    assert titles(pg, "3") == []
    other.rollback()
    assert len(titles(pg, "3")) == 1


# --- Ends before the end ------------------------------------------------------


def backends(pg: psycopg.Connection) -> int:
    """The connections of the processes that `start` started."""
    return int(
        scalar(
            pg,
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND application_name = 'worker'",
        )
    )


def test_a_killed_worker_loses_its_own_batch_and_no_more(
    service: EmbeddingServer,
    start: Start,
    manage: Manage,
    pg: psycopg.Connection,
) -> None:
    texts = store(pg, 12)
    release = threading.Event()
    service.script.extend([Answer(), Answer(release=release)])
    process = start("--batch-size", "4")
    for _ in range(2):
        assert service.arrived.acquire(timeout=60)
    assert backends(pg) > 0
    process.kill()
    assert process.wait(timeout=30) == -signal.SIGKILL
    first, lost = (set(body["input"]) for body in service.bodies)
    assert stored(pg) == first
    deadline = time.monotonic() + 30
    while backends(pg):
        assert time.monotonic() < deadline, "the server never noticed"

    done = manage("sync_embeddings", "--json", **variables(service))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["embedded"] == 8
    release.set()
    assert stored(pg) == set(texts)
    assert asked(service) == {text: 2 if text in lost else 1 for text in texts}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_batch_in_hand_be_finished(
    service: EmbeddingServer, start: Start, pg: psycopg.Connection, number: signal.Signals
) -> None:
    store(pg, 12)
    release = threading.Event()
    service.script.extend([Answer(), Answer(release=release)])
    process = start("--batch-size", "4")
    for _ in range(2):
        assert service.arrived.acquire(timeout=60)
    process.send_signal(number)
    complaints = read_until(process, "Stopping after the work in hand")
    release.set()
    said, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "8 embedded with hosted" in said
    assert "4 remain" in said
    assert "Interrupted. Another run goes on" in rest
    assert "Traceback" not in complaints + rest
    assert len(stored(pg)) == 8


def test_a_watch_embeds_what_comes_later_until_it_is_told_to_stop(
    service: EmbeddingServer, start: Start, pg: psycopg.Connection
) -> None:
    texts = set(store(pg, 4))
    process = start("--watch", "0.05")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("4 embedded with hosted")
    texts |= set(store(pg, 2, "later"))
    # What it looked for in vain in between is not told of.
    assert process.stdout.readline().startswith("2 embedded with hosted")
    assert stored(pg) == texts
    process.send_signal(signal.SIGTERM)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in complaints


@in_process
def test_a_watch_that_finds_nothing_only_counts(
    service: EmbeddingServer, pg: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(pg, 2)
    assert sync(service).embedded == 2
    counted: list[object] = []

    def count(*arguments: Any, **options: Any) -> list[SourceWork]:
        counted.append(arguments)
        if len(counted) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return embedding_work(*arguments, **options)

    def embed(**options: Any) -> SyncOutcome:
        raise AssertionError("there is nothing to embed")

    monkeypatch.setattr(command, "embedding_work", count)
    monkeypatch.setattr(command, "sync_embeddings", embed)
    with (
        override_settings(CARTRITA_SEARCH=embedder(service)),
        pytest.raises(CommandError, match="Interrupted") as stopped,
    ):
        call_command("sync_embeddings", "--watch", "0.01")
    assert stopped.value.returncode == 130
    assert len(counted) == 3


def test_a_second_signal_abandons_it(
    service: EmbeddingServer, start: Start, pg: psycopg.Connection
) -> None:
    store(pg, 8)
    release = threading.Event()
    service.script.extend([Answer(), Answer(release=release)])
    process = start("--batch-size", "4")
    for _ in range(2):
        assert service.arrived.acquire(timeout=60)
    process.send_signal(signal.SIGINT)
    complaints = read_until(process, "Stopping after")
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    release.set()
    assert process.returncode == 130
    assert "Interrupted. What was in hand is undone" in rest
    assert "Traceback" not in complaints + rest
    assert len(stored(pg)) == 4


def read_until(process: subprocess.Popen[str], phrase: str) -> str:
    """What the process wrote to stderr, up to the line with the phrase."""
    assert process.stderr is not None
    read = ""
    while phrase not in read:
        line = process.stderr.readline()
        assert line, read
        read += line
    return read


# --- Providers that fail ------------------------------------------------------


@in_process
def test_a_poisonous_text_is_set_aside_and_the_rest_goes_on(
    service: EmbeddingServer, pg: psycopg.Connection
) -> None:
    texts = store(pg, 20)
    bad = {texts[3], texts[11]}
    service.poisonous = bad.__contains__
    outcome = sync(service, batch_size=16)
    assert (outcome.embedded, outcome.refused) == (18, 2)
    assert (outcome.remaining, outcome.set_aside) == (0, 2)
    assert stored(pg) == {*texts} - bad
    assert all(count == 1 for count in service.embedded.values())
    found = refusals(pg)
    assert [row[:3] for row in found] == [
        ("notes 11", "hosted", "SE022"),
        ("notes 3", "hosted", "SE022"),
    ]
    for *_, message, worker in found:
        assert "this text cannot be embedded" in message
        assert KEY not in message
        assert re.fullmatch(rf".+:{os.getpid()}", worker)
    assert embedding_work("hosted") == [SourceWork("notes", 20, 0, 0, 2)]

    # Nobody is asked again,
    requests = len(service.bodies)
    assert sync(service).set_aside == 2
    assert len(service.bodies) == requests
    # until the text is another,
    pg.execute("UPDATE search_documents SET content = 'better' WHERE source_id = '3'")
    outcome = sync(service)
    assert (outcome.embedded, outcome.set_aside) == (1, 1)
    assert asked(service)["notes 3\nbetter"] == 1
    assert [row[0] for row in refusals(pg)] == ["notes 11"]
    # or somebody wants it: once, if it is refused again.
    requests = len(service.bodies)
    assert sync(service, retry_refused=True).refused == 1
    assert len(service.bodies) == requests + 1
    assert [row[0] for row in refusals(pg)] == ["notes 11"]
    service.poisonous = lambda text: False
    assert sync(service, retry_refused=True).embedded == 1
    assert refusals(pg) == []


@in_process
def test_a_document_without_text_is_set_aside_unasked(
    service: EmbeddingServer, pg: psycopg.Connection
) -> None:
    pg.execute(
        "INSERT INTO search_documents (source_table, source_id, title) "
        "VALUES ('notes', '1', ' '), ('notes', '2', '')"
    )
    outcome = sync(service)
    assert (outcome.embedded, outcome.refused) == (0, 2)
    assert service.bodies == []
    assert {row[3] for row in refusals(pg)} == {"The document has no text."}


def edit_one(data: list[dict[str, Any]]) -> None:
    """An answer of which one vector, that of a certain text, is zero."""
    for item in data:
        if item["embedding"] == vector("notes 5\ntext", 8):
            item["embedding"] = [0.0] * 8


@in_process
def test_whatever_the_provider_says_can_be_stored(
    service: EmbeddingServer, pg: psycopg.Connection
) -> None:
    store(pg, 1)
    said = json.dumps({"error": {"message": "no\0no\ud800" + "x" * 5000}})
    service.default = Answer(400, body=said.encode())
    assert sync(service).refused == 1
    assert "400 - no no?xxx" in refusals(pg)[0][3]
    assert len(refusals(pg)[0][3]) <= module.MESSAGE_LENGTH


@in_process
def test_an_unusable_vector_is_set_aside_too(
    service: EmbeddingServer, pg: psycopg.Connection
) -> None:
    texts = store(pg, 9)
    service.default = Answer(edit=edit_one)
    assert sync(service).refused == 1
    assert stored(pg) == {*texts} - {texts[5]}
    assert "no direction" in refusals(pg)[0][3]


@in_process
def test_a_provider_that_refuses_everything_is_not_believed(
    service: EmbeddingServer, pg: psycopg.Connection
) -> None:
    store(pg, 20)
    service.default = Answer(400)
    with pytest.raises(EmbedderUnavailable, match="refuses all 20 texts of a batch"):
        sync(service)
    assert refusals(pg) == []
    # Unless that is asked for.
    assert sync(service, batch_size=7).refused == 20
    assert len(refusals(pg)) == 20


@in_process
def test_an_overloaded_provider_is_tried_again_with_nothing_locked(
    service: EmbeddingServer, pg: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = store(pg, 10)
    attempts: list[int] = []

    def pause(state: Any) -> float:
        attempts.append(state.attempt_number)
        pg.execute("SELECT FROM search_documents FOR UPDATE NOWAIT")
        return 0.0

    monkeypatch.setattr(module, "BACKOFF", pause)
    service.script.extend([Answer(), Answer(429), Answer(503), Answer(drop=True)])
    assert sync(service, batch_size=5).embedded == 10
    assert attempts == [1, 2, 3]
    assert stored(pg) == set(texts)


@in_process
def test_one_that_stays_overloaded_ends_the_run_and_nothing_is_set_aside(
    service: EmbeddingServer, pg: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(pg, 10)
    monkeypatch.setattr(module, "BACKOFF", wait_none())
    service.script.append(Answer())
    service.default = Answer(500)
    with pytest.raises(EmbedderOverloaded):
        sync(service, batch_size=5)
    assert len(service.bodies) == 1 + module.ATTEMPTS
    assert (len(stored(pg)), refusals(pg)) == (5, [])


@in_process
def test_a_stop_does_not_wait_for_the_next_attempt(
    service: EmbeddingServer, pg: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(pg, 10)
    stop = threading.Event()

    def pause(state: Any) -> float:
        stop.set()
        return 3600.0

    monkeypatch.setattr(module, "BACKOFF", pause)
    service.default = Answer(500)
    outcome = sync(service, stop=stop)
    assert (outcome.embedded, outcome.remaining) == (0, 10)


# --- The command --------------------------------------------------------------


def test_a_provider_that_cannot_be_used_is_one_line(
    service: EmbeddingServer, manage: Manage, pg: psycopg.Connection
) -> None:
    store(pg, 12)
    service.script.append(Answer())
    service.default = Answer(401)
    done = manage("sync_embeddings", "--batch-size", "4", "--workers", "1", **variables(service))
    assert done.returncode == 1
    *progress, complaint = done.stderr.splitlines()
    assert re.search("401.*What is stored stays", complaint)
    assert all(line.startswith("Embedding with hosted: ") for line in progress)
    assert KEY not in done.stdout + done.stderr
    assert len(stored(pg)) == 4


def test_what_it_says_and_its_status(
    service: EmbeddingServer, manage: Manage, pg: psycopg.Connection
) -> None:
    texts = store(pg, 12)
    done = manage("sync_embeddings", **variables(service))
    assert (done.returncode, stored(pg)) == (0, set(texts))
    assert re.match(
        r"12 embedded with hosted in [\d.]+ s \([\d.]+/s\), 0 set aside; 0 remain\.", done.stdout
    )
    assert re.search(r"12 of 12 \(100 %\), [\d.]+/s, 00:00 left", done.stderr)

    store(pg, 2, "letters")
    service.poisonous = lambda text: text.startswith("letters 1")
    done = manage("sync_embeddings", "--json", **variables(service))
    assert done.returncode == 3
    outcome = json.loads(done.stdout)
    assert {name: outcome[name] for name in ("embedded", "refused", "remaining")} == {
        "embedded": 1,
        "refused": 1,
        "remaining": 0,
    }
    assert outcome["set_aside"] == 1
    assert "1 are set aside" in done.stderr
    # Set aside by an earlier run, but set aside.
    assert manage("sync_embeddings", **variables(service)).returncode == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "other"], 'not of "other"'),
        (["--source", "absent"], 'no documents of source "absent"'),
        (["--workers", "0"], "workers must be at least 1"),
        (["--watch", "0"], "--watch takes seconds"),
        (["--watch", "nan"], "--watch takes seconds"),
        (["--watch", "inf"], "--watch takes seconds"),
        (["--dry-run", "--source", "absent"], "no documents of source"),
    ],
)
def test_a_mistake_is_one_line(
    service: EmbeddingServer, manage: Manage, arguments: Sequence[str], message: str
) -> None:
    done = manage("sync_embeddings", *arguments, **variables(service))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr


def test_a_dry_run_counts_and_writes_nothing(
    service: EmbeddingServer, manage: Manage, pg: psycopg.Connection
) -> None:
    store(pg, 3)
    upsert(pg, "0", unit(vector("x", 8)), "hosted")
    upsert(pg, "1", unit(vector("x", 8)), "hosted", p_content_hash="another")
    pg.execute("UPDATE search_documents SET content = 'changed' WHERE source_id = '1'")
    store(pg, 2, "letters")
    pg.execute(
        "INSERT INTO embedding_refusals (document_id, embedding_model, content_hash, error_code, "
        "message, worker) SELECT id, 'hosted', content_hash, 'SE022', 'no', 'host:1' "
        "FROM search_documents WHERE source_table = 'letters' AND source_id = '1'"
    )
    before = [row_versions(pg, table) for table in ("search_documents", "embeddings")]
    done = manage("sync_embeddings", "--dry-run", **variables(service))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0].split() == [
        *("source_table", "documents", "missing", "stale", "set_aside"),
    ]
    assert [line.split() for line in done.stdout.splitlines()[2:]] == [
        ["letters", "2", "1", "0", "1"],
        ["notes", "3", "1", "1", "0"],
    ]
    done = manage("sync_embeddings", "--dry-run", "--json", **variables(service))
    assert json.loads(done.stdout) == {
        "model": "hosted",
        "sources": [
            {"source_table": "letters", "documents": 2, "missing": 1, "stale": 0, "set_aside": 1},
            {"source_table": "notes", "documents": 3, "missing": 1, "stale": 1, "set_aside": 0},
        ],
    }
    assert [row_versions(pg, table) for table in ("search_documents", "embeddings")] == before
    assert service.bodies == []
