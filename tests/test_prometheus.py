"""What Prometheus reads, who may read it, and that a silent database does not hold it up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.test import Client, override_settings
from prometheus_client.parser import text_string_to_metric_families

from cartrita.embedded.postgres import EmbeddedPostgres
from cartrita_search import conf, metrics, prometheus
from cartrita_search.db import REBUILD_LOCK
from cartrita_search.metrics import SearchMetric, record
from tests.conftest import Connect, Manage
from tests.postgres import scalar, upsert

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("clean_tables")]

TOKEN = "a-token-of-this-test"
Figures = dict[str, float]


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A token, nothing counted yet, and as much patience as a busy machine needs."""
    monkeypatch.setattr(prometheus, "_counts", None)
    monkeypatch.setattr(prometheus, "PATIENCE", 60.0)
    monkeypatch.setattr(prometheus._state, "_seconds", 60.0)
    with override_settings(CARTRITA_SEARCH=settings.CARTRITA_SEARCH | {"METRICS_TOKEN": TOKEN}):
        yield


def scrape(client: Client, **headers: str) -> Any:
    return client.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"} | headers)


def read(text: str) -> Figures:
    """Every sample by its name and labels, as Prometheus writes them."""
    found: Figures = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def figures(client: Client) -> Figures:
    response = scrape(client)
    assert response.status_code == 200
    return read(response.text)


# --- Who may read it --------------------------------------------------------------


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN}", 200),
        ("Bearer another-token", 401),
        (f"Bearer {TOKEN}x", 401),
        (f"Basic {TOKEN}", 401),
        (TOKEN, 401),
        ("Bearer", 401),
        ("Bearer t\xf6ken", 401),
        ("", 401),
    ],
)
def test_only_who_presents_the_token(client: Client, authorization: str, status: int) -> None:
    response = client.get("/metrics", headers={"authorization": authorization})
    assert response.status_code == status
    if status == 401:
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert response.content == b""


def test_without_a_token_there_is_no_such_page(client: Client) -> None:
    with override_settings(CARTRITA_SEARCH=settings.CARTRITA_SEARCH | {"METRICS_TOKEN": ""}):
        assert scrape(client).status_code == 404


def test_a_token_that_is_easily_guessed_is_refused_and_not_shown() -> None:
    _, (problem,) = conf.load({"METRICS_TOKEN": "secret"})
    assert "METRICS_TOKEN" in problem
    assert "16 characters" in problem
    assert "'secret'" not in problem


def test_prometheus_comes_by_address_over_http(client: Client) -> None:
    with override_settings(ALLOWED_HOSTS=["search.example.org"], SECURE_SSL_REDIRECT=True):
        assert scrape(client, host="10.1.2.3:8000").status_code == 200


def test_the_newer_format_is_given_to_who_asks_for_it(client: Client) -> None:
    response = scrape(client, accept="application/openmetrics-text; version=1.0.0")
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


# --- What the processes counted ------------------------------------------------------


def test_each_search_is_counted_by_type_and_cache_hit(client: Client) -> None:
    before = figures(client)
    record(SearchMetric("hybrid", 3, 40.0))
    record(SearchMetric("hybrid", 0, 4000.0))
    record(SearchMetric("keyword", 0, 0.5, cache_hit=True))
    after = figures(client)

    def more(name: str) -> float:
        return after[name] - before.get(name, 0)

    def searches(suffix: str, kind: str, hit: str, **labels: str) -> float:
        given = ",".join(
            f'{key}="{value}"'
            for key, value in sorted({"type": kind, "cache_hit": hit, **labels}.items())
        )
        return more(f"cartrita_search_duration_seconds_{suffix}{{{given}}}")

    assert searches("count", "hybrid", "false") == 2
    assert searches("sum", "hybrid", "false") == pytest.approx(4.04)
    assert searches("bucket", "hybrid", "false", le="0.05") == 1
    assert searches("bucket", "hybrid", "false", le="5.0") == 2
    assert searches("count", "keyword", "true") == 1
    assert more('cartrita_search_zero_hits_total{type="hybrid"}') == 1
    assert more('cartrita_search_zero_hits_total{type="keyword"}') == 1


def test_searches_that_leave_no_row_are_counted_all_the_same(client: Client) -> None:
    """RECORD_SEARCHES is off here; but those of an evaluation are nobody's."""
    count = 'cartrita_search_duration_seconds_count{cache_hit="false",type="vector"}'
    before = figures(client).get(count, 0)
    record(SearchMetric("vector", 1, 1.0))
    with metrics.suspended():
        record(SearchMetric("vector", 1, 1.0))
    assert figures(client)[count] == before + 1


def test_dropped_rows_the_cache_and_its_breaker(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = figures(client)
    full = settings.CARTRITA_SEARCH | {
        "RECORD_SEARCHES": True,
        "METRICS_BUFFER_ROWS": 1,
        "METRICS_FLUSH_SECONDS": 3600.0,
    }
    recorder = metrics._Recorder()
    monkeypatch.setattr(recorder, "_start", lambda: None)  # nobody writes
    monkeypatch.setattr(metrics, "_recorder", recorder)
    with override_settings(CARTRITA_SEARCH=full):
        for _ in range(3):
            record(SearchMetric("vector", 1, 1.0))
    for event in ("hit", "hit", "miss", "error"):
        prometheus.count_cache(event)
    prometheus.set_breaker(is_open=True)
    during = figures(client)
    prometheus.set_breaker(is_open=False)
    dropped = "cartrita_search_dropped_metrics_total"
    assert during[dropped] - before[dropped] == 2
    for event, times in (("hit", 2), ("miss", 1), ("error", 1)):
        name = f'cartrita_search_cache_events_total{{event="{event}"}}'
        assert during[name] - before.get(name, 0) == times
    assert during["cartrita_search_cache_breaker_open"] == 1
    assert figures(client)["cartrita_search_cache_breaker_open"] == 0


def test_processes_that_share_a_folder_are_counted_together(
    manage: Manage, tmp_path: Path
) -> None:
    """As gunicorn's workers do: whichever is scraped tells of all."""
    script = """
from django.test import Client
from cartrita_search import prometheus
from cartrita_search.metrics import SearchMetric, record
prometheus.PATIENCE = 60.0
record(SearchMetric("hybrid", 0, 40.0))
print(Client().get("/metrics", headers={"authorization": "Bearer TOKEN"}).text)
""".replace("TOKEN", TOKEN)
    variables = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "METRICS_TOKEN": TOKEN}
    for _ in range(2):
        done = manage("shell", "--verbosity=0", "-c", script, **variables)
        assert done.returncode == 0, done.stderr
    found = read(done.stdout)
    count = 'cartrita_search_duration_seconds_count{cache_hit="false",type="hybrid"}'
    assert found[count] == 2
    assert found["cartrita_search_database_up"] == 1


# --- What the database tells ------------------------------------------------------


def test_indexes_recall_and_what_is_stale_by_model(client: Client, pg: psycopg.Connection) -> None:
    pg.execute("UPDATE search_settings SET exact_scan_max_rows = 10")
    for number in range(40):
        upsert(pg, str(number), [1.0, number, 2.0], 'it\'s "mini"', p_content=f"text {number}")
    pg.execute("INSERT INTO search_documents (source_table, source_id) VALUES ('notes', 'new')")
    pg.execute("SELECT rebuild_vector_indexes()")
    pg.execute("UPDATE search_documents SET content = 'changed' WHERE source_id IN ('1', '2')")
    found = figures(client)
    label = """{model="it's "mini""}"""
    index = scalar(pg, "SELECT pg_relation_size(vector_index_name(name)) FROM embedding_models")
    recall = scalar(pg, "SELECT measured_recall FROM embedding_models")
    assert index > 0
    assert {name: found[f"cartrita_search_{name}{label}"] for name in NAMES} == {
        "index_recall": recall,
        "index_target_recall": 0.95,
        "index_size_bytes": index,
        "index_rows": 40,
        "embeddings": 40,
        "missing_embeddings": 1,
        "stale_embeddings": 2,
    }
    assert found["cartrita_search_database_up"] == 1


NAMES = (
    "index_recall",
    "index_target_recall",
    "index_size_bytes",
    "index_rows",
    "embeddings",
    "missing_embeddings",
    "stale_embeddings",
)


def test_a_model_without_an_index_has_no_recall(client: Client, pg: psycopg.Connection) -> None:
    upsert(pg, "1", [1.0, 2.0, 3.0])
    found = figures(client)
    assert found['cartrita_search_embeddings{model="mini"}'] == 1
    assert 'cartrita_search_index_recall{model="mini"}' not in found
    assert 'cartrita_search_index_size_bytes{model="mini"}' not in found


def test_a_rebuild_is_seen_while_it_runs(client: Client, connect: Connect) -> None:
    builder = connect(autocommit=False)
    builder.execute("SELECT pg_advisory_xact_lock(%s)", [REBUILD_LOCK])
    assert figures(client)["cartrita_search_rebuild_running"] == 1
    builder.rollback()
    assert figures(client)["cartrita_search_rebuild_running"] == 0


def test_what_reads_every_document_is_not_read_by_every_scrape(
    client: Client, pg: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = 'cartrita_search_embeddings{model="mini"}'
    monkeypatch.setattr(prometheus, "COUNTING_REST", 3600.0)
    upsert(pg, "1", [1.0, 2.0, 3.0])
    assert figures(client)[label] == 1
    upsert(pg, "2", [1.0, 2.0, 3.0])
    assert figures(client)[label] == 1  # counted a moment ago
    monkeypatch.setattr(prometheus, "COUNTING_REST", 0.0)
    monkeypatch.setattr(prometheus, "COUNTING_SHARE", 1e9)
    assert figures(client)[label] == 2


def test_counts_that_take_longer_than_a_scrape_are_there_for_a_later_one(
    client: Client, pg: psycopg.Connection, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    upsert(pg, "1", [1.0, 2.0, 3.0])
    label = 'cartrita_search_embeddings{model="mini"}'
    holder = connect(autocommit=False)
    holder.execute("LOCK TABLE search_documents IN ACCESS EXCLUSIVE MODE")
    with monkeypatch.context() as impatient:
        impatient.setattr(prometheus, "PATIENCE", 0.5)
        deadline = time.monotonic() + 60
        while (found := figures(client))["cartrita_search_database_up"] == 0:
            assert time.monotonic() < deadline, "the database never answered in half a second"
    assert label not in found
    holder.rollback()
    prometheus._counting.answer(30)
    assert figures(client)[label] == 1


def test_a_frozen_server_does_not_hold_up_what_the_process_knows(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = EmbeddedPostgres.from_settings().pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        with monkeypatch.context() as impatient:
            impatient.setattr(prometheus, "PATIENCE", 0.1)
            found = figures(client)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert found["cartrita_search_database_up"] == 0
    assert "cartrita_search_dropped_metrics_total" in found
    with suppress(psycopg.Error):  # what was asked then, and may have been given up
        prometheus._state.answer(30)
    assert figures(client)["cartrita_search_database_up"] == 1


def test_a_database_that_is_not_migrated_is_up_for_nobody(
    client: Client, pg: psycopg.Connection
) -> None:
    pg.execute("ALTER TABLE embedding_models RENAME TO elsewhere")
    try:
        assert figures(client)["cartrita_search_database_up"] == 0
    finally:
        pg.execute("ALTER TABLE elsewhere RENAME TO embedding_models")
