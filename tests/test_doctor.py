"""The doctor: a healthy database has no finding, and each finding comes with what it is for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import LazySettings, settings
from django.core.cache import caches
from django.core.checks import Tags, run_checks
from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction
from psycopg import sql
from pytest_django import DjangoDbBlocker

from cartrita.embedded.postgres import EmbeddedPostgres, client_program
from cartrita_search import metrics
from cartrita_search.cache import breaker_state
from cartrita_search.db import REBUILD_LOCK, advisory_lock
from cartrita_search.ops import doctor
from cartrita_search.ops.diagnosis import Finding
from cartrita_search.ops.doctor import Thresholds
from cartrita_search.retrieval import keyword_search

from .conftest import Connect, Manage
from .postgres import index_name, scalar, upsert
from .redis_server import Proxy, RedisServer, caches_at, redis_behind_proxy, redis_server

pytestmark = pytest.mark.usefixtures("django_connection")

PAGE = settings.BASE_DIR / "docs" / "troubleshooting.md"

ROWS = 200


@pytest.fixture
def django_connection(clean_tables: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """Django's own connection, in autocommit mode; `clean_tables` is cleaning enough."""
    with django_db_blocker.unblock():
        yield


@pytest.fixture
def healthy(pg: psycopg.Connection) -> psycopg.Connection:
    """Documents with vectors, their index and statistics, all fresh."""
    pg.execute("UPDATE search_settings SET exact_scan_max_rows = 100")
    upsert(pg, "first", [1, 0, 0, 0], "model", p_content="the first text")
    pg.execute(
        "INSERT INTO search_documents (source_table, source_id, content)"
        " SELECT 'notes', n::text, 'text number ' || n FROM generate_series(2, %s) AS n",
        [ROWS],
    )
    pg.execute(
        "INSERT INTO embeddings (document_id, source_table, source_id, embedding_model, embedding)"
        " SELECT id, source_table, source_id, 'model',"
        " format('[%s,1,%s,2]', source_id, 50 - source_id::integer)::vector"
        " FROM search_documents WHERE source_id <> 'first'"
    )
    pg.execute("SELECT rebuild_vector_indexes()")
    pg.execute("SELECT pg_stat_force_next_flush()")  # what it counts later would be news
    pg.execute("VACUUM (ANALYZE) search_documents, embeddings")
    pg.execute("UPDATE embedding_models SET measured_recall = 1")
    return pg


@contextmanager
def undone() -> Iterator[None]:
    """What is done on Django's connection within is undone."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def execute(statement: str, parameters: Any = None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)


def found(key: str, **thresholds: Any) -> list[Finding]:
    """What the one rule finds; it must have been able to look."""
    examined = doctor.examine(only=[key], thresholds=Thresholds(**thresholds))
    assert examined.skipped == {}
    assert {finding.id for finding in examined.findings} <= {key}
    return examined.findings


def one(key: str, **thresholds: Any) -> Finding:
    (finding,) = found(key, **thresholds)
    return finding


def checks() -> list[str]:
    return [
        str(message.id).removeprefix("cartrita_search.")
        for message in run_checks(tags=[Tags.database], databases=["default"])
        if str(message.id).startswith("cartrita_search.W")
    ]


# --- The whole ---------------------------------------------------------------


def test_a_healthy_database_has_no_finding(healthy: psycopg.Connection) -> None:
    examined = doctor.examine()
    assert examined.findings == []
    assert examined.skipped == {}
    assert examined.looked_at == len(doctor.RULES)
    assert checks() == []


def test_an_empty_migrated_database_has_none_either() -> None:
    examined = doctor.examine()
    assert (examined.findings, examined.skipped) == ([], {})


def test_the_page_explains_every_finding_and_nothing_else() -> None:
    headings = re.findall(r"^### (D\d{3}) (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    assert headings == [(rule.id, rule.title) for rule in doctor.RULES.values()]
    # What it prints, with the command, as an example under each heading.
    for rule in doctor.RULES.values():
        section = PAGE.read_text().partition(f"### {rule.id} ")[2].partition("\n### ")[0]
        assert re.search(
            rf"^    {rule.severity:7}  {rule.id}  .+\n {{19}}-> .+", section, re.MULTILINE
        )
    assert "docs/troubleshooting.md" in (settings.BASE_DIR / "README.md").read_text()


def test_errors_come_before_warnings_and_many_alike_are_counted(
    healthy: psycopg.Connection,
) -> None:
    with undone():
        execute("UPDATE search_documents SET content = 'changed' WHERE source_id = '7'")
        execute("DELETE FROM django_migrations WHERE name = '0010_operator_actions'")
        execute(
            "INSERT INTO keyword_corpora (language, documents, average_length)"
            " SELECT 'language ' || n, 5, 1 FROM generate_series(1, 9) AS n"
        )
        examined = doctor.examine(only=["D012", "D013", "D004"])
    assert [finding.severity for finding in examined.findings] == ["error"] + ["warning"] * 4
    statistics = [f.evidence for f in examined.findings if f.id == "D013"]
    assert len(statistics) == 3
    assert statistics[-1] == "and 7 more like these"


def test_what_was_last_done_is_told(healthy: psycopg.Connection) -> None:
    assert doctor.examine(only=[]).last_actions == {}
    healthy.execute("INSERT INTO operator_actions (action) VALUES ('backup')")
    healthy.execute("INSERT INTO operator_actions (action, outcome) VALUES ('rebuild', 'failed')")
    assert list(doctor.examine(only=[]).last_actions) == ["backup"]


def test_a_locked_table_is_said_to_be_locked(healthy: psycopg.Connection) -> None:
    with healthy.transaction():
        healthy.execute("LOCK TABLE search_documents IN ACCESS EXCLUSIVE MODE")
        examined = doctor.examine(only=["D012"])
    assert "cleanup_stuck_queries" in examined.skipped["D012"]


def test_a_rule_that_takes_too_long_is_given_up(healthy: psycopg.Connection) -> None:
    with healthy.transaction():
        healthy.execute("LOCK TABLE search_documents IN ACCESS EXCLUSIVE MODE")
        examined = doctor.examine(only=["D012"], thresholds=Thresholds(patience=0.1))
    assert examined.skipped == {"D012": "it took longer than 0.1 s"}


# --- The server and what is installed ----------------------------------------


@contextmanager
def pgvector(version: str) -> Iterator[None]:
    with undone():
        execute("UPDATE pg_extension SET extversion = %s WHERE extname = 'vector'", [version])
        yield


def test_d001_an_old_pgvector() -> None:
    assert found("D001") == []
    with pgvector("0.7.4"):
        assert "0.7.4 is too old" in one("D001").evidence
        assert found("D002") == []  # not the same twice


def test_d002_a_risky_pgvector() -> None:
    assert found("D002") == []
    with pgvector("0.8.3"):
        assert "0.8.3" in one("D002").evidence


def test_d003_a_pending_upgrade() -> None:
    assert found("D003") == []
    with pgvector("0.8.4"):
        assert one("D003").remedy == "ALTER EXTENSION vector UPDATE;"
        assert checks() == ["W002"]
    with pgvector("99.0"):
        assert found("D003") == []


# --- Migrations --------------------------------------------------------------


def test_d004_unapplied_migrations() -> None:
    assert found("D004") == []
    with undone():
        execute("DELETE FROM django_migrations WHERE name = '0010_operator_actions'")
        finding = one("D004")
        assert finding.evidence == "1 not applied: cartrita_search.0010_operator_actions"
        assert finding.severity == "error"
        assert "W003" in checks()


def test_d005_a_migration_changed_after_it_was_applied() -> None:
    assert found("D005") == []
    with undone():
        execute("INSERT INTO schema_migrations VALUES ('0001_earlier.sql', now(), 'x', 'x')")
        assert found("D005") == []  # the earlier runner's, not ours
        execute(
            "UPDATE schema_migrations SET checksum = 'x' WHERE version = '0001_initial_baseline'"
        )
        assert "0001_initial_baseline" in one("D005").evidence


# --- Indexes -----------------------------------------------------------------


def test_d006_an_invalid_index(healthy: psycopg.Connection, connect: Connect) -> None:
    assert found("D006") == []
    with pytest.raises(psycopg.errors.UniqueViolation):
        healthy.execute(
            "CREATE UNIQUE INDEX CONCURRENTLY doctor_test ON search_documents (source_table)"
        )
    try:
        finding = one("D006")
        assert "public.doctor_test" in finding.evidence
        assert finding.remedy == "REINDEX INDEX CONCURRENTLY public.doctor_test;"
        assert checks() == ["W004"]
        with advisory_lock(connect(), REBUILD_LOCK):
            assert found("D006") == []  # somebody is at it
    finally:
        healthy.execute("DROP INDEX doctor_test")


def test_d006_an_invalid_vector_index_is_rebuilt(healthy: psycopg.Connection) -> None:
    with undone():
        execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(%s)",
            [index_name(healthy)],
        )
        assert one("D006").remedy == "manage.py rebuild_vector_indexes"


@pytest.mark.parametrize("suffix", ["__new", "__old", "_ccnew", "_ccold1"])
def test_d007_a_leftover_index(healthy: psycopg.Connection, suffix: str) -> None:
    assert found("D007") == []
    with undone():
        execute(
            sql.SQL("CREATE INDEX {} ON search_documents (title)")
            .format(sql.Identifier(f"x{suffix}"))
            .as_string()
        )
        assert one("D007").remedy == f"DROP INDEX CONCURRENTLY public.x{suffix};"
        assert checks() == ["W005"]


def test_d008_an_index_other_than_planned(healthy: psycopg.Connection) -> None:
    assert found("D008") == []
    with undone():
        execute("UPDATE search_settings SET exact_scan_max_rows = 10000")
        assert "planned is exact, in place hnsw" in one("D008").evidence
    with undone():
        execute("UPDATE embedding_models SET index_method = 'ivfflat'")
        finding = one("D008")
        assert "expect ivfflat, in place is hnsw" in finding.evidence
        assert finding.remedy == "manage.py rebuild_vector_indexes --model model"


def test_d009_an_index_that_no_search_can_use(healthy: psycopg.Connection) -> None:
    assert found("D009") == []
    name = sql.Identifier(index_name(healthy))
    with undone():
        execute(sql.SQL("DROP INDEX {}").format(name).as_string())
        execute(
            sql.SQL(
                "CREATE INDEX {} ON embeddings USING hnsw"
                " ((embedding::halfvec(4)) halfvec_l2_ops) WHERE embedding_model = 'model'"
            )
            .format(name)
            .as_string()
        )
        assert "cannot use" in one("D009").evidence


def test_d009_an_index_that_the_planner_does_not_want(healthy: psycopg.Connection) -> None:
    # With so few rows it is right; that is what the threshold is for.
    assert "cheaper" in one("D009", planner_rows=10).evidence


def test_d010_low_recall(healthy: psycopg.Connection) -> None:
    assert found("D010") == []
    with undone():
        execute("UPDATE embedding_models SET measured_recall = 0.9")
        assert one("D010").evidence == "model: recall@10 is 0.900, the target 0.95."


def test_d011_vectors_put_aside(healthy: psycopg.Connection) -> None:
    assert found("D011") == []
    with undone():
        execute("UPDATE embeddings SET segment = 1000 WHERE source_id = '7'")
        assert one("D011").evidence == "model: 1 vectors are put aside."


# --- Documents, statistics, weights ------------------------------------------


def test_d012_missing_and_stale_embeddings(healthy: psycopg.Connection) -> None:
    assert found("D012") == []
    with undone():
        execute("UPDATE search_documents SET content = 'changed' WHERE source_id IN ('7', '8')")
        execute("DELETE FROM embeddings WHERE source_id = '9'")
        finding = one("D012")
        assert finding.evidence == (
            f"model: 1 of {ROWS} documents have no vector, 2 one of an older text."
        )
        assert finding.remedy == "manage.py sync_embeddings --model model"


def test_d012_documents_without_any_model(pg: psycopg.Connection) -> None:
    pg.execute("INSERT INTO search_documents (source_table, source_id) VALUES ('t', '1')")
    assert one("D012").evidence == "No document of 1 has a vector."


def test_d013_keyword_statistics_older_than_the_corpus(healthy: psycopg.Connection) -> None:
    assert found("D013") == []
    with undone():
        execute("DELETE FROM search_documents WHERE source_id::text < '2'")
        assert one("D013").remedy == "SELECT refresh_keyword_statistics();"
    with undone():
        execute("DELETE FROM search_documents WHERE source_id = '7'")
        assert found("D013") == []  # one of hundreds changes nothing


def test_d014_invalid_weights(healthy: psycopg.Connection) -> None:
    with undone():
        execute("INSERT INTO retrieval_configs (vector_weight, keyword_weight) VALUES (0.4, 0.6)")
        assert found("D014") == []
        execute("ALTER TABLE retrieval_configs DROP CONSTRAINT retrieval_configs_weights_sum")
        execute(
            "INSERT INTO retrieval_configs (user_id, vector_weight, keyword_weight)"
            " VALUES (7, 0.9, 0.9)"
        )
        finding = one("D014")
        assert "(0.9 / 0.9)" in finding.evidence
        assert "W006" in checks()
        execute(finding.remedy)
        assert found("D014") == []


def test_d014_two_active_configurations(healthy: psycopg.Connection) -> None:
    with undone():
        execute("DROP INDEX retrieval_configs_one_active")
        execute("INSERT INTO retrieval_configs DEFAULT VALUES")
        execute("INSERT INTO retrieval_configs DEFAULT VALUES")
        finding = one("D014")
        assert finding.evidence == "The site has 2 active configurations."
        execute(finding.remedy)
        assert found("D014") == []


# --- Tables ------------------------------------------------------------------


def test_d015_a_table_never_analyzed(healthy: psycopg.Connection) -> None:
    def unanalyzed() -> list[Finding]:
        found_ = found("D015", analyze_pages=8)
        return [finding for finding in found_ if "search_documents" in finding.evidence]

    assert unanalyzed() == []
    healthy.execute("DELETE FROM pg_statistic WHERE starelid = 'search_documents'::regclass")
    healthy.execute("SELECT pg_stat_reset_single_table_counters('search_documents'::regclass)")
    assert found("D015") == []  # too small to matter
    (finding,) = unanalyzed()
    assert finding.remedy == "VACUUM (ANALYZE) search_documents;"
    healthy.execute(finding.remedy.encode())
    assert unanalyzed() == []


def test_d016_dead_tuples(healthy: psycopg.Connection, connect: Connect) -> None:
    def dead() -> list[str]:
        # Others that are written with these are not of interest here.
        findings = [f.evidence.split()[0] for f in found("D016", dead_tuples=100)]
        return [table for table in findings if table == "search_documents:"]

    # Autovacuum, should it come by just now, cannot remove what this one may see.
    connect(autocommit=False).execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1")
    assert dead() == []
    for title in ("one", "two"):
        healthy.execute("UPDATE search_documents SET title = %s", [title])
    healthy.execute("SELECT pg_stat_force_next_flush()")
    assert found("D016") == []  # too few to matter
    assert dead() == ["search_documents:"]


def test_d017_a_bloated_table(healthy: psycopg.Connection) -> None:
    def bloated() -> list[str]:
        # Other tables have been written by the tests before this one.
        findings = [f.evidence.split()[0] for f in found("D017", bloat_bytes=500_000)]
        return [table for table in findings if table == "search_performance_metrics"]

    healthy.execute(
        "INSERT INTO search_performance_metrics (search_type, result_count, execution_time_ms)"
        " SELECT 'hybrid', 1, 1 FROM generate_series(1, 20000)"
    )
    healthy.execute("VACUUM (ANALYZE) search_performance_metrics")
    assert bloated() == []
    # One of ten stays, so that no page is given back.
    healthy.execute("DELETE FROM search_performance_metrics WHERE id % 10 <> 0")
    healthy.execute("VACUUM (ANALYZE) search_performance_metrics")
    assert found("D017") == []  # not as much as would matter
    assert bloated() == ["search_performance_metrics"]


# --- Redis and sessions ------------------------------------------------------


@pytest.fixture
def redis() -> Iterator[Any]:
    """The run's Redis, put right again at the end."""
    client = caches["default"].client.get_client(write=True)  # type: ignore[attr-defined]
    before = client.config_get("maxmemory*")
    client.config_resetstat()
    yield client
    client.config_set("maxmemory", before["maxmemory"])
    client.config_set("maxmemory-policy", before["maxmemory-policy"])
    client.flushdb()
    client.config_resetstat()


def test_d018_redis_does_not_answer(redis: Any, settings: LazySettings) -> None:
    assert found("D018") == []
    settings.CACHES = {
        "default": {
            "BACKEND": "django_redis.cache.RedisCache",
            "LOCATION": "redis://:secret@localhost:1/0",
        }
    }
    finding = one("D018")
    assert "The cache default" in finding.evidence
    assert "secret" not in finding.evidence
    assert found("D019") == []  # not the same twice


@pytest.mark.parametrize(
    ("options", "evidence", "remedy"),
    [
        (["--maxmemory", "1"], "maxmemory", "maxmemory-policy volatile-lru"),
        (["--replicaof", "127.0.0.1 1"], "read only replica", "REPLICAOF NO ONE"),
    ],
)
def test_d018_redis_takes_no_writes(
    settings: LazySettings, options: list[str], evidence: str, remedy: str
) -> None:
    with redis_server(*options) as server:
        settings.CACHES = caches_at(server.url, settings.CACHES)
        finding = one("D018")
    assert evidence in finding.evidence
    assert remedy in finding.remedy


def test_without_redis_nothing_is_said_of_it(settings: LazySettings) -> None:
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    assert found("D018") == found("D019") == []


def test_d019_redis_without_a_bound(redis: Any) -> None:
    assert found("D019") == []
    redis.config_set("maxmemory", 0)
    assert "no maxmemory" in one("D019").evidence


@pytest.mark.parametrize(
    ("policy", "does"), [("noeviction", "refuses writes"), ("allkeys-lru", "evicts any key")]
)
def test_d019_redis_with_another_policy(redis: Any, policy: str, does: str) -> None:
    redis.config_set("maxmemory-policy", policy)
    assert does in one("D019").evidence


def test_d019_redis_that_evicts(redis: Any) -> None:
    redis.config_set("maxmemory", redis.info("memory")["used_memory"] + 1_000_000)
    for number in range(300):
        redis.set(f"doctor-{number}", b"x" * 10_000, ex=600)
    assert re.search(r"has evicted [1-9]\d* keys", one("D019").evidence)


def test_several_caches_in_one_redis_are_one_server(redis: Any, settings: LazySettings) -> None:
    settings.CACHES = settings.CACHES | {"other": settings.CACHES["default"] | {"KEY_PREFIX": "x"}}
    redis.config_set("maxmemory", 0)
    assert "other has no maxmemory" in one("D019").evidence


IN_MEMORY = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
NOWHERE = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}


@pytest.mark.parametrize(
    ("engine", "cache", "evidence"),
    [
        ("cache", {}, "logged out"),
        ("cached_db", {}, None),
        ("cached_db", IN_MEMORY, "memory of each process"),
        ("cached_db", NOWHERE, None),
        ("db", IN_MEMORY, None),
        ("signed_cookies", IN_MEMORY, None),
    ],
)
def test_d020_sessions(
    settings: LazySettings, engine: str, cache: dict[str, Any], evidence: str | None
) -> None:
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    settings.SESSION_CACHE_ALIAS = "default"
    settings.CACHES = cache or settings.CACHES
    assert [finding.id for finding in found("D020")] == (["D020"] if evidence else [])
    assert checks() == (["W007"] if evidence else [])
    if evidence:
        assert evidence in one("D020").evidence


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, settings: LazySettings) -> Iterator[None]:
    """Searches are recorded when a test says so."""
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {
        "CACHE_SECONDS": 300,
        "RECORD_SEARCHES": True,
        "METRICS_FLUSH_SECONDS": 3600.0,
    }
    mine = metrics._Recorder()
    monkeypatch.setattr(metrics, "_recorder", mine)
    yield
    mine.close()


@pytest.mark.parametrize(
    ("breaks", "error"),
    [
        (lambda server, proxy: proxy.silence(), "TimeoutError"),
        (lambda server, proxy: server.kill(), "ConnectionError"),
    ],
    ids=["silent", "refusing"],
)
@pytest.mark.usefixtures("recorder")
def test_d026_searches_past_redis(
    pg: psycopg.Connection,
    manage: Manage,
    settings: LazySettings,
    breaks: Callable[[RedisServer, Proxy], None],
    error: str,
) -> None:
    with redis_behind_proxy() as (server, proxy):
        settings.CACHES = caches_at(proxy.url, settings.CACHES)
        keyword_search("tea")
        keyword_search("tea")
        assert metrics.flush() == 2
        assert found("D026") == []
        breaks(server, proxy)
        for _ in range(3):
            keyword_search("tea")
        assert metrics.flush() == 3
    # The doctor is another process, and reaches a Redis that is well.
    told = manage("search_doctor").stdout
    assert "3 of 5 searches in the last 15 minutes went past Redis" in told
    assert f"ago, after a {error}." in told
    assert "D018" not in told
    pg.execute("UPDATE search_performance_metrics SET created_at = now() - interval '16 minutes'")
    assert found("D026") == []


@pytest.mark.usefixtures("recorder")
def test_d026_without_redis_or_without_the_cache_searches_go_past_nothing(
    settings: LazySettings,
) -> None:
    settings.CACHES = {"default": settings.CACHES["default"]}
    keyword_search("tea")
    settings.CACHES = caches_at("redis://127.0.0.1:1/0", settings.CACHES)
    caches["default"].get("key")
    keyword_search("tea")
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"CACHE_SECONDS": 0}
    settings.CACHES = settings.CACHES | {"search": settings.CACHES["default"]}
    keyword_search("tea")
    assert breaker_state() == "open"
    assert metrics.flush() == 3
    assert found("D026") == []


# --- Operation ---------------------------------------------------------------


@pytest.mark.parametrize(
    "insert",
    [
        "INSERT INTO search_performance_metrics"
        " (search_type, result_count, execution_time_ms, created_at)"
        " VALUES ('hybrid', 1, 1, now() - make_interval(days => %s))",
        "INSERT INTO cache_invalidation_log (cache_key, invalidation_reason, created_at)"
        " VALUES ('x', 'x', now() - make_interval(days => %s))",
    ],
)
def test_d021_an_old_search_history(healthy: psycopg.Connection, insert: str) -> None:
    healthy.execute(insert.encode(), [80])
    assert found("D021") == []
    healthy.execute(insert.encode(), [200])
    finding = one("D021")
    assert finding.evidence.split()[0] in insert
    assert finding.remedy == "manage.py prune_search_history --keep-days 90"


def test_d021_a_large_search_history(healthy: psycopg.Connection) -> None:
    assert "takes" in found("D021", history_bytes=1)[0].evidence


@pytest.fixture
def replica(
    database: dict[str, Any], embedded_servers: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The alias of a real replica of the run's server."""
    primary = EmbeddedPostgres.from_settings()
    server = EmbeddedPostgres(embedded_servers / "replica")
    server.parent.mkdir()
    command = [
        client_program("pg_basebackup"),
        *("--pgdata", str(server.folder), "--write-recovery-conf", "--checkpoint", "fast"),
        *("--host", str(database["host"]), "--port", str(database["port"])),
        *("--username", str(database["user"]), "--wal-method", "stream"),
    ]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    # The primary's socket is in its folder, and so in the copy.
    (server.folder / ".s.PGSQL.5432.lock").unlink(missing_ok=True)
    owner = primary.folder.stat()
    for path in (server.folder, *server.folder.rglob("*")):
        shutil.chown(path, owner.st_uid, owner.st_gid)
    server.start()
    alias = "replica"
    configured = connections.configure_settings(
        {
            **settings.DATABASES,
            alias: settings.DATABASES["default"]
            | server.connection_settings()
            | {"ENGINE": "django.db.backends.postgresql", "NAME": database["dbname"]},
        }
    )
    monkeypatch.setitem(connections.databases, alias, configured[alias])
    yield alias
    connections[alias].close()
    del connections[alias]
    server.stop()
    shutil.rmtree(server.parent)


def wait_for(pg: psycopg.Connection, statement: str) -> None:
    deadline = time.monotonic() + 60
    while not scalar(pg, statement):
        assert time.monotonic() < deadline, f"it never came to: {statement}"


@pytest.mark.slow
def test_d022_a_replica_that_lags(healthy: psycopg.Connection, replica: str) -> None:
    def on_the_replica() -> list[Finding]:
        return doctor.examine(
            using=replica, only=["D022"], thresholds=Thresholds(lag_seconds=0)
        ).findings

    caught_up = (
        "SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'"
        " AND replay_lsn = pg_current_wal_lsn()"
    )
    healthy.execute("SET synchronous_commit = local")  # or WAL is written some time later
    healthy.execute("UPDATE search_documents SET title = 'first'")
    wait_for(healthy, caught_up)
    assert found("D022") == []
    assert on_the_replica() == []
    with connections[replica].cursor() as cursor:
        cursor.execute("SELECT pg_wal_replay_pause()")
    healthy.execute("UPDATE search_documents SET title = 'second'")
    wait_for(
        healthy,
        "SELECT flush_lsn = pg_current_wal_lsn() AND replay_lsn < flush_lsn"
        " FROM pg_stat_replication",
    )
    assert "walreceiver (local) is " in one("D022", lag_bytes=100).evidence
    (finding,) = on_the_replica()
    assert finding.evidence.startswith("This replica is ")


def test_d023_a_long_transaction(healthy: psycopg.Connection, connect: Connect) -> None:
    assert found("D023", transaction_seconds=0) == []
    reader = connect(autocommit=False, application_name="report")
    reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1")
    assert found("D023") == []  # not for long
    finding = one("D023", transaction_seconds=0)
    assert f"pid {reader.info.backend_pid} (postgres, report), idle in" in finding.evidence
    reader.rollback()

    reader.execute("PREPARE TRANSACTION 'forgotten'")
    try:
        finding = one("D023", transaction_seconds=0)
        assert finding.remedy.startswith("ROLLBACK PREPARED 'forgotten';")
    finally:
        reader.rollback()
        healthy.execute("ROLLBACK PREPARED 'forgotten'")


def test_what_a_role_may_not_see_is_not_looked_at_and_said_so() -> None:
    with undone():
        execute("CREATE ROLE doctor_test")
        execute("SET LOCAL ROLE doctor_test")
        examined = doctor.examine()
        execute("RESET ROLE")
    assert "D022" not in examined.skipped  # there is no replica, and every role sees that
    assert 'GRANT pg_read_all_stats TO "doctor_test";' in examined.skipped["D023"]
    assert "this role may not" in examined.skipped["D012"]


def test_d024_small_shared_buffers(healthy: psycopg.Connection) -> None:
    assert found("D024") == []
    assert "shared_buffers 128.0" in one("D024", hot_share=0.0001).evidence


def test_d025_many_connections(healthy: psycopg.Connection) -> None:
    assert found("D025") == []
    assert re.fullmatch(
        r"\d+ of 197 connections are in use\.", one("D025", connections_share=0).evidence
    )


# --- The command -------------------------------------------------------------


def run(*arguments: str) -> tuple[str, int]:
    """What it prints, and its exit status."""
    out = StringIO()
    try:
        call_command("search_doctor", *arguments, stdout=out, no_color=True)
    except CommandError as error:
        return f"{out.getvalue()}{error}", error.returncode
    return out.getvalue(), 0


def test_the_command_prints_one_screen(healthy: psycopg.Connection) -> None:
    printed, status = run("--fail-on", "warning")
    assert status == 0
    first, last = printed.splitlines()
    looked_at = len(doctor.RULES)
    assert re.fullmatch(
        rf"test_cartrita: PostgreSQL \S+, pgvector \S+; {looked_at} things looked at in \S+ s",
        first,
    )
    assert last.startswith("0 to mend")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [((), 0), (("--fail-on", "error"), 0), (("--fail-on", "warning"), 3)],
)
def test_the_exit_status_is_as_asked_for(
    healthy: psycopg.Connection, arguments: tuple[str, ...], status: int
) -> None:
    healthy.execute("UPDATE embedding_models SET measured_recall = 0.9")
    printed, exited = run(*arguments)
    assert exited == status
    assert "warning  D010  model: recall@10 is 0.900, the target 0.95.\n" in printed
    assert "-> manage.py rebuild_vector_indexes --model model" in printed


def test_an_error_fails_either_way(healthy: psycopg.Connection) -> None:
    with undone():
        execute("DELETE FROM django_migrations WHERE name = '0010_operator_actions'")
        assert run("--fail-on", "error")[1] == 3
        assert run("--fail-on", "warning")[1] == 3


def test_json_is_a_document_that_scripts_can_read(healthy: psycopg.Connection) -> None:
    healthy.execute("UPDATE embedding_models SET measured_recall = 0.9")
    healthy.execute("INSERT INTO operator_actions (action) VALUES ('backup')")
    document = json.loads(run("--json")[0])
    (finding,) = document["findings"]
    assert (finding["id"], finding["severity"]) == ("D010", "warning")
    assert document["skipped"] == {}
    assert "backup" in document["last_actions"]


def test_a_database_that_is_not_there_is_one_line(manage: Manage) -> None:
    done = manage("search_doctor", DATABASE_URL="postgres://nobody:secret@localhost:1/nothing")
    assert done.returncode == 1
    assert "No connection to the database" in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_database_without_our_tables_is_examined_too(
    manage: Manage, pg: psycopg.Connection
) -> None:
    done = manage("search_doctor", DATABASE_URL=_url(pg, "postgres"))
    assert done.returncode == 0, done.stderr
    assert "D004" in done.stdout
    assert "not looked at, because not all migrations are applied" in done.stdout


def _url(pg: psycopg.Connection, database: str) -> str:
    return f"postgres://{pg.info.user}@:{pg.info.port}/{database}?host={pg.info.host}"
