"""The system checks, each true and absent, and the settings that they look at."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from django.conf import LazySettings, settings
from django.core.checks import CheckMessage, Tags, run_checks
from django.db import connection, connections

from cartrita_search import conf
from cartrita_search.errors import InvalidArgument
from tests.conftest import Manage


def ours(messages: list[CheckMessage]) -> list[str]:
    return [str(message.id) for message in messages if "cartrita_search" in str(message.id)]


def check_database(alias: str = "default") -> list[CheckMessage]:
    found = run_checks(tags=[Tags.database], databases=[alias])
    return [message for message in found if "cartrita_search" in str(message.id)]


# --- E001: the settings -----------------------------------------------------


@pytest.mark.parametrize(
    "right",
    [
        {},
        {"EMBEDDER": None, "EMBEDDER_OPTIONS": {}, "GRANT_ROLE": ""},
        {"EMBEDDER": "package.module.Class", "EMBEDDER_OPTIONS": {"threads": 2}},
        {"GRANT_ROLE": "a role"},
        {"RERANKER": "package.Class", "RERANKER_OPTIONS": {"diversity": 1}, "RERANK_DEPTH": 1},
        {"RECORD_SEARCHES": False, "STORE_QUERY_TEXT": True},
        {"METRICS_BUFFER_ROWS": 1_000_000, "METRICS_FLUSH_SECONDS": 1},
    ],
)
def test_right_settings_are_taken_as_they_are(
    settings: LazySettings, right: dict[str, object]
) -> None:
    settings.CARTRITA_SEARCH = right
    assert ours(run_checks()) == []
    loaded = conf.search_settings()
    for key, value in right.items():
        assert getattr(loaded, key.lower()) == value


def test_no_settings_at_all_mean_the_defaults(settings: LazySettings) -> None:
    del settings.CARTRITA_SEARCH
    assert ours(run_checks()) == []
    assert conf.search_settings() == conf.SearchSettings()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"EMBEDER": "a.b"}, "'EMBEDER'"),
        ({"grant_role": "lower case"}, "'grant_role'"),
        ({1: 2}, "1"),
        ({"EMBEDDER": "nodots"}, '"EMBEDDER"'),
        ({"EMBEDDER": ""}, '"EMBEDDER"'),
        ({"EMBEDDER": 3}, '"EMBEDDER"'),
        ({"EMBEDDER_OPTIONS": None}, '"EMBEDDER_OPTIONS"'),
        ({"EMBEDDER_OPTIONS": {1: 2}}, '"EMBEDDER_OPTIONS"'),
        ({"GRANT_ROLE": None}, '"GRANT_ROLE"'),
        ({"GRANT_ROLE": ["a"]}, '"GRANT_ROLE"'),
        ({"GRANT_SITE": "yes"}, '"GRANT_SITE"'),
        ({"RERANKER": None}, '"RERANKER"'),
        ({"RERANKER": "nodots"}, '"RERANKER"'),
        ({"RERANKER_OPTIONS": []}, '"RERANKER_OPTIONS"'),
        ({"RERANK_DEPTH": 0}, '"RERANK_DEPTH"'),
        ({"RERANK_DEPTH": 10_001}, '"RERANK_DEPTH"'),
        ({"RERANK_DEPTH": True}, '"RERANK_DEPTH"'),
        ({"RERANK_DEPTH": 5.0}, '"RERANK_DEPTH"'),
        ({"POSTGRES_BIN": None}, '"POSTGRES_BIN"'),
        ({"RECORD_SEARCHES": "no"}, '"RECORD_SEARCHES"'),
        ({"STORE_QUERY_TEXT": 1}, '"STORE_QUERY_TEXT"'),
        ({"METRICS_BUFFER_ROWS": 0}, '"METRICS_BUFFER_ROWS"'),
        ({"METRICS_FLUSH_SECONDS": 0}, '"METRICS_FLUSH_SECONDS"'),
        ({"METRICS_FLUSH_SECONDS": float("inf")}, '"METRICS_FLUSH_SECONDS"'),
        ({"METRICS_FLUSH_SECONDS": False}, '"METRICS_FLUSH_SECONDS"'),
        ({"V1_TABLES": {"table": "notes"}}, '"V1_TABLES"'),
        ({"V1_TABLES": [{"table": 1}]}, '"V1_TABLES"'),
        (["EMBEDDER"], "must be a dict, not list"),
        (None, "must be a dict, not NoneType"),
    ],
)
def test_wrong_settings_are_an_error_that_names_the_key(
    settings: LazySettings, wrong: object, named: str
) -> None:
    settings.CARTRITA_SEARCH = wrong
    found = [message for message in run_checks() if message.id == "cartrita_search.E001"]
    assert len(found) == 1
    assert named in found[0].msg
    assert found[0].is_serious()
    with pytest.raises(InvalidArgument) as refused:
        conf.search_settings()
    assert refused.value.message == found[0].msg


def test_everything_wrong_is_told_at_once() -> None:
    defaults, problems = conf.load({"EMBEDDER": "nodots", "GRANT_ROLE": 1, "OTHER": 2})
    assert defaults == conf.SearchSettings()
    assert len(problems) == 3


def test_manage_does_not_run_with_wrong_settings(manage: Manage) -> None:
    done = manage("check", EMBEDDER="nodots", EMBEDDER_OPTIONS=json.dumps([1]))
    assert done.returncode == 1
    assert done.stderr.count("cartrita_search.E001") == 2
    assert "Traceback" not in done.stderr


# --- E002, W001: pgvector ---------------------------------------------------


def set_version(version: str) -> None:
    """Until the test's transaction is rolled back."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE pg_extension SET extversion = %s WHERE extname = 'vector'", [version]
        )


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("version", "ids"),
    [
        ("0.7.4", ["cartrita_search.E002"]),
        ("0.8.0", ["cartrita_search.W001"]),
        ("0.8.3", ["cartrita_search.W001"]),
        ("0.8.4", []),
        ("0.8.10", []),
        ("0.10.0", []),
        ("1.0", []),
    ],
)
def test_an_old_pgvector_is_an_error_and_a_risky_one_a_warning(
    version: str, ids: list[str]
) -> None:
    set_version(version)
    # Beside W002, that the server's is a newer one.
    found = [each for each in check_database() if str(each.id).endswith(("E002", "W001"))]
    assert ours(found) == ids
    for message in found:
        assert version in message.msg
        assert "ALTER EXTENSION vector UPDATE;" in (message.hint or "")


@pytest.mark.django_db
def test_databases_are_looked_at_only_when_asked_for() -> None:
    set_version("0.7.4")
    assert ours(run_checks()) == []


def test_the_migrated_database_passes(manage: Manage) -> None:
    done = manage("check", "--database", "default", "--fail-level", "WARNING")
    assert done.returncode == 0, done.stderr
    assert "no issues" in done.stdout


# --- E003: another database -------------------------------------------------


@pytest.fixture
def sqlite(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The alias of a database that is not PostgreSQL."""
    alias = "elsewhere"
    configured = connections.configure_settings(
        {
            **settings.DATABASES,
            alias: {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
        }
    )
    monkeypatch.setitem(connections.databases, alias, configured[alias])
    yield alias
    connections[alias].close()
    del connections[alias]


def test_a_database_that_is_not_postgresql_is_an_error(sqlite: str) -> None:
    (found,) = check_database(sqlite)
    assert found.id == "cartrita_search.E003"
    assert sqlite in found.msg
    assert "SQLite" in found.msg
