"""What each variable of the environment does to the settings."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.test import Client
from environ import Env

from cartrita_search import conf
from tests.conftest import Manage

KEY = "a-key-long-enough-for-the-deployment-check-to-like-it-0123456789"
SETTINGS = settings.BASE_DIR / "cartrita" / "settings.py"
EMBEDDED = "cartrita.embedded"
POSTGRESQL = "django.db.backends.postgresql"

Load = Callable[..., dict[str, Any]]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """The settings module, executed in an environment of these variables alone."""

    def _load(**variables: str) -> dict[str, Any]:
        monkeypatch.setattr(Env, "ENVIRON", {"ENV_FILE": os.devnull} | variables)
        return runpy.run_path(str(SETTINGS))

    return _load


# --- The site ---------------------------------------------------------------


def test_debug_is_off_unless_asked_for(load: Load) -> None:
    assert load(SECRET_KEY=KEY)["DEBUG"] is False
    assert load(SECRET_KEY=KEY, DEBUG="")["DEBUG"] is False
    assert load(DEBUG="true")["DEBUG"] is True


def test_a_site_without_a_key_does_not_start_and_says_how_to_make_one(load: Load) -> None:
    with pytest.raises(ImproperlyConfigured, match="token_urlsafe") as refused:
        load()
    assert "\n" not in str(refused.value)
    assert load(DEBUG="true")["SECRET_KEY"].startswith("django-insecure-")


def test_manage_tells_a_missing_key_in_one_line(manage: Manage) -> None:
    done = manage("check", DEBUG="false")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "SECRET_KEY" in done.stderr


def test_the_deployment_check_is_clean(manage: Manage) -> None:
    done = manage(
        *("check", "--deploy", "--fail-level", "WARNING"),
        DEBUG="false",
        SECRET_KEY=KEY,
        ALLOWED_HOSTS="search.example.org",
    )
    assert done.returncode == 0, done.stderr
    assert "no issues" in done.stdout


def test_browsers_are_held_to_https_unless_in_development(load: Load) -> None:
    production, development = load(SECRET_KEY=KEY), load(DEBUG="true")
    for name in ("SESSION_COOKIE_SECURE", "CSRF_COOKIE_SECURE", "SECURE_SSL_REDIRECT"):
        assert (production[name], development[name]) == (True, False)
    assert production["SECURE_HSTS_SECONDS"] == 31_536_000
    assert development["SECURE_HSTS_SECONDS"] == 0

    assert load(SECRET_KEY=KEY, SECURE_SSL_REDIRECT="false")["SECURE_SSL_REDIRECT"] is False
    without = load(SECRET_KEY=KEY, SECURE_HSTS_SECONDS="0")
    assert without["SECURE_HSTS_INCLUDE_SUBDOMAINS"] is without["SECURE_HSTS_PRELOAD"] is False


def test_a_proxy_is_believed_only_when_told_to(load: Load) -> None:
    assert "SECURE_PROXY_SSL_HEADER" not in load(SECRET_KEY=KEY)
    trusting = load(SECRET_KEY=KEY, TRUST_X_FORWARDED_PROTO="true")
    assert trusting["SECURE_PROXY_SSL_HEADER"] == ("HTTP_X_FORWARDED_PROTO", "https")


def test_lists_are_separated_by_commas_with_or_without_space(load: Load) -> None:
    loaded = load(SECRET_KEY=KEY, ALLOWED_HOSTS="a.org, b.org,", CSRF_TRUSTED_ORIGINS="")
    assert loaded["ALLOWED_HOSTS"] == ["a.org", "b.org"]
    assert loaded["CSRF_TRUSTED_ORIGINS"] == []


@pytest.mark.parametrize(
    ("variable", "value"), [("CONN_MAX_AGE", "a minute"), ("EMBEDDER_OPTIONS", "{threads: 2}")]
)
def test_a_value_that_cannot_be_read_is_named(load: Load, variable: str, value: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=variable):
        load(DEBUG="true", **{variable: value})


def test_the_env_file_is_read_and_the_environment_wins(load: Load, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("DEBUG=true\nLOG_LEVEL=warning\nCONN_MAX_AGE=5\n")
    loaded = load(ENV_FILE=str(file), CONN_MAX_AGE="7")
    assert loaded["DEBUG"] is True
    assert loaded["LOGGING"]["root"]["level"] == "WARNING"
    assert loaded["DATABASES"]["default"]["CONN_MAX_AGE"] == 7


@pytest.mark.parametrize(
    "url", ["", "postgres://u@h/d?sslmode=require", "postgres://u@h/d?prepare_threshold=9"]
)
def test_statements_are_prepared_only_when_asked_for(load: Load, url: str) -> None:
    given = load(DEBUG="true", DATABASE_URL=url)["DATABASES"]["default"].get("OPTIONS", {})
    prepared = load(DEBUG="true", DATABASE_URL=url, PREPARE_STATEMENTS="true")
    assert "prepare_threshold" not in given or "9" in url
    assert prepared["DATABASES"]["default"]["OPTIONS"] == {"prepare_threshold": 5} | given


def test_the_root_of_the_site_leads_to_the_admin(client: Client) -> None:
    assert client.get("/").headers["Location"] == "/admin/"


# --- PostgreSQL -------------------------------------------------------------


def test_with_no_database_named_it_is_the_embedded_one(load: Load) -> None:
    database = load(DEBUG="true", DATABASE_URL="", POSTGRES_HOST="")["DATABASES"]["default"]
    assert (database["ENGINE"], database["NAME"]) == (EMBEDDED, "cartrita")


def test_a_database_by_url(load: Load) -> None:
    url = "postgres://me:p%40ss@db.example.org:6432/search?sslmode=verify-full"
    database = load(DEBUG="true", DATABASE_URL=url)["DATABASES"]["default"]
    assert database == {
        "ENGINE": POSTGRESQL,
        "HOST": "db.example.org",
        "PORT": 6432,
        "NAME": "search",
        "USER": "me",
        "PASSWORD": "p@ss",
        "OPTIONS": {"sslmode": "verify-full", "connect_timeout": 5},
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,
    }


@pytest.mark.parametrize(
    "url",
    ["postgres://me@%2Frun%2Fpostgresql/search", "postgres://me@/search?host=/run/postgresql"],
)
def test_a_database_by_url_may_be_behind_a_socket(load: Load, url: str) -> None:
    database = load(DEBUG="true", DATABASE_URL=url)["DATABASES"]["default"]
    assert (database["HOST"], database["NAME"]) == ("/run/postgresql", "search")


@pytest.mark.parametrize("url", ["mysql://me@localhost/search", "sqlite:///search.db", "search"])
def test_a_database_that_is_not_postgresql_is_refused(load: Load, url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="PostgreSQL"):
        load(DEBUG="true", DATABASE_URL=url)


def test_a_database_by_parts(load: Load) -> None:
    database = load(
        DEBUG="true",
        POSTGRES_HOST="db",
        POSTGRES_DB="search",
        POSTGRES_USER="me",
        POSTGRES_PASSWORD="$literally",
        POSTGRES_SSL="true",
    )["DATABASES"]["default"]
    assert (database["ENGINE"], database["HOST"], database["PORT"]) == (POSTGRESQL, "db", "5432")
    assert (database["NAME"], database["USER"]) == ("search", "me")
    assert database["PASSWORD"] == "$literally"
    assert database["OPTIONS"] == {"sslmode": "require", "connect_timeout": 5}


@pytest.mark.parametrize(
    "part",
    ["POSTGRES_HOST", "POSTGRES_PORT", "POSTGRES_DB", "POSTGRES_USER", "POSTGRES_PASSWORD"],
)
def test_one_part_is_enough_to_mean_a_database_of_ones_own(load: Load, part: str) -> None:
    assert load(DEBUG="true", **{part: "5433"})["DATABASES"]["default"]["ENGINE"] == POSTGRESQL


def test_a_url_wins_over_parts(load: Load) -> None:
    loaded = load(DEBUG="true", DATABASE_URL="postgres://one/db", POSTGRES_HOST="other")
    assert loaded["DATABASES"]["default"]["HOST"] == "one"


def test_a_url_of_the_file_does_not_silently_win_over_a_server_of_the_environment(
    load: Load, tmp_path: Path
) -> None:
    file = tmp_path / "env"
    file.write_text("DEBUG=true\nDATABASE_URL=postgres://one/db\n")
    done = subprocess.run(
        [sys.executable, "manage.py", "migrate"],
        cwd=settings.BASE_DIR,
        env={"PATH": os.environ["PATH"], "ENV_FILE": str(file), "POSTGRES_PORT": "55432"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "DATABASE_URL" in done.stderr
    parts = load(ENV_FILE=str(file), POSTGRES_HOST="localhost", DATABASE_URL="")
    assert parts["DATABASES"]["default"]["HOST"] == "localhost"
    assert load(ENV_FILE=str(file))["DATABASES"]["default"]["HOST"] == "one"


def test_replicas_are_databases_that_searches_go_to(load: Load) -> None:
    loaded = load(
        DEBUG="true",
        DATABASE_URL="postgres://me@primary/search",
        DATABASE_REPLICA_URLS="postgres://me:p%2Css@one:6432/search, postgres://me@two/search",
    )
    one, two = (loaded["DATABASES"][alias] for alias in ("replica_1", "replica_2"))
    assert (one["HOST"], one["PORT"], one["PASSWORD"]) == ("one", 6432, "p,ss")
    assert two["HOST"] == "two"
    # Tests of a project that has them make no databases there.
    assert one["TEST"] == two["TEST"] == {"MIRROR": "default"}
    assert loaded["CARTRITA_SEARCH"]["REPLICAS"] == ("replica_1", "replica_2")
    assert loaded["DATABASE_ROUTERS"] == ["cartrita.routers.SearchRouter"]


def test_a_replica_that_is_not_postgresql_is_refused_without_showing_a_password(
    load: Load,
) -> None:
    with pytest.raises(ImproperlyConfigured, match="DATABASE_REPLICA_URLS") as refused:
        load(DEBUG="true", DATABASE_REPLICA_URLS="mysql://me:secret@one/search")
    assert "secret" not in str(refused.value)


def test_a_pool_keeps_the_connections_itself(load: Load) -> None:
    loaded = load(
        DEBUG="true",
        DATABASE_POOL="2,10",
        DATABASE_CONNECT_TIMEOUT="3",
        DATABASE_REPLICA_URLS="postgres://me@one/search",
    )
    for database in loaded["DATABASES"].values():
        assert database["OPTIONS"]["pool"] == {"min_size": 2, "max_size": 10, "timeout": 3}
        assert database["CONN_MAX_AGE"] == 0
    assert loaded["DATABASES"]["default"]["OPTIONS"]["connect_timeout"] == 3
    # Searches have the primary to go to, and so wait less.
    assert loaded["DATABASES"]["replica_1"]["OPTIONS"]["connect_timeout"] == 2


@pytest.mark.parametrize("sizes", ["10", "5,2", "0,0", "-1,5", "a,b"])
def test_a_pool_of_no_size_is_refused(load: Load, sizes: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="DATABASE_POOL"):
        load(DEBUG="true", DATABASE_POOL=sizes)


def test_behind_a_pooler_no_cursor_is_left_on_the_server(load: Load) -> None:
    behind = load(DEBUG="true", MIGRATE_DATABASE_URL="postgres://db/name")["DATABASES"]["default"]
    assert behind["DISABLE_SERVER_SIDE_CURSORS"] is True


def test_statements_have_a_limit_where_one_is_set(load: Load) -> None:
    given = load(DEBUG="true", DATABASE_STATEMENT_TIMEOUT="2.5")["DATABASES"]["default"]
    assert given["OPTIONS"]["options"] == "-c statement_timeout=2500"


# --- Redis ------------------------------------------------------------------

URL = "postgres://db/search"


@pytest.mark.parametrize(
    ("variables", "location"),
    [
        ({}, "embedded"),
        ({"REDIS_URL": "redis://r:1/2"}, "redis://r:1/2"),
        ({"REDIS_HOST": "r"}, "redis://r:6379/0"),
        ({"REDIS_PORT": "7"}, "redis://localhost:7/0"),
        ({"REDIS_URL": "redis://r:1/2", "DATABASE_URL": URL}, "redis://r:1/2"),
        ({"REDIS_URL": "redis://r:1/2", "REDIS_HOST": "other"}, "redis://r:1/2"),
    ],
)
def test_where_the_cache_is_and_the_sessions_with_it(
    load: Load, variables: dict[str, str], location: str
) -> None:
    loaded = load(DEBUG="true", **variables)
    assert loaded["CACHES"]["default"]["LOCATION"] == location
    assert loaded["SESSION_ENGINE"] == "cartrita_search.sessions"
    assert loaded["SESSION_CACHE_ALIAS"] == "default"


def test_sessions_are_never_in_the_memory_of_one_process(load: Load) -> None:
    loaded = load(DEBUG="true", DATABASE_URL=URL)
    assert "LOCATION" not in loaded["CACHES"]["default"]
    assert loaded["SESSION_ENGINE"] == "cartrita_search.sessions"
    assert "dummy" in loaded["CACHES"][loaded["SESSION_CACHE_ALIAS"]]["BACKEND"]


def test_a_redis_password_is_taken_to_the_letter(load: Load) -> None:
    options = load(DEBUG="true", REDIS_PASSWORD="$p@:/")["CACHES"]["default"]["OPTIONS"]
    assert options["PASSWORD"] == "$p@:/"


def test_a_redis_that_is_gone_breaks_nothing(manage: Manage) -> None:
    script = (
        "from django.core.cache import cache;"
        "cache.set('key', 'value'); print(cache.get('key', 'nothing'))"
    )
    done = manage("shell", "--verbosity=0", "-c", script, REDIS_URL="redis://127.0.0.1:1/0")
    assert (done.returncode, done.stdout) == (0, "nothing\n"), done.stderr
    assert "Connection refused" in done.stderr  # ignored, and logged


# --- Search -----------------------------------------------------------------


def test_the_embedder_is_the_demos_in_development_and_none_in_production(load: Load) -> None:
    demo = "cartrita_search.embedders.OnnxEmbedder"
    assert load(DEBUG="true")["CARTRITA_SEARCH"]["EMBEDDER"] == demo
    assert load(SECRET_KEY=KEY)["CARTRITA_SEARCH"]["EMBEDDER"] is None


def test_search_settings_default_to_the_apps_own(load: Load) -> None:
    loaded, problems = conf.load(load(SECRET_KEY=KEY)["CARTRITA_SEARCH"])
    assert problems == []
    assert loaded == conf.SearchSettings()


def test_search_settings_come_from_the_environment(load: Load) -> None:
    loaded = load(
        SECRET_KEY=KEY,
        EMBEDDER="house.Embedder",
        EMBEDDER_OPTIONS='{"threads": 2}',
        RERANKER="house.Reranker",
        RERANKER_OPTIONS='{"diversity": 0.5}',
        RERANK_DEPTH="80",
        RECORD_SEARCHES="false",
        STORE_QUERY_TEXT="true",
        METRICS_BUFFER_ROWS="500",
        METRICS_FLUSH_SECONDS="0.5",
        METRICS_KEEP_DAYS="30",
        METRICS_TOKEN="$taken-to-the-letter",
        CACHE_SECONDS="0",
        CACHE_MAX_BYTES="5000",
        GRANT_ROLE="app",
        GRANT_SITE="true",
        MIGRATE_DATABASE_URL="postgres://db/name",
        FORCE_MIGRATION="true",
        V1_TABLES='[{"table": "notes", "content": "body"}]',
        POSTGRES_BIN="/opt/pg/bin",
        REPLICA_MAX_LAG_SECONDS="2.5",
    )
    assert loaded["CARTRITA_SEARCH"] == {
        "EMBEDDER": "house.Embedder",
        "EMBEDDER_OPTIONS": {"threads": 2},
        "RERANKER": "house.Reranker",
        "RERANKER_OPTIONS": {"diversity": 0.5},
        "RERANK_DEPTH": 80,
        "RECORD_SEARCHES": False,
        "STORE_QUERY_TEXT": True,
        "METRICS_BUFFER_ROWS": 500,
        "METRICS_FLUSH_SECONDS": 0.5,
        "METRICS_KEEP_DAYS": 30,
        "METRICS_TOKEN": "$taken-to-the-letter",
        "CACHE_SECONDS": 0,
        "CACHE_MAX_BYTES": 5000,
        "GRANT_ROLE": "app",
        "GRANT_SITE": True,
        "DIRECT_DATABASE_URL": "postgres://db/name",
        "FORCE_MIGRATION": True,
        "V1_TABLES": [{"table": "notes", "content": "body"}],
        "POSTGRES_BIN": "/opt/pg/bin",
        "REPLICAS": (),
        "REPLICA_MAX_LAG_SECONDS": 2.5,
    }


# --- One place, and it is documented ----------------------------------------


def declared() -> set[str]:
    return set(runpy.run_path(str(SETTINGS))["env"].scheme)


def test_env_example_documents_every_variable_and_no_other() -> None:
    text = (settings.BASE_DIR / ".env.example").read_text()
    assert set(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]+)=", text, re.MULTILINE)) == declared()


def test_the_settings_read_what_they_declare() -> None:
    read = {
        call.args[0].value
        for call in ast.walk(ast.parse(SETTINGS.read_text()))
        if isinstance(call, ast.Call)
        and re.fullmatch(r"env(\.\w+)?", ast.unparse(call.func))
        and call.args
        and isinstance(call.args[0], ast.Constant)
    }
    # The names in the tuples that any() goes through are read by one loop each.
    looped = set(re.findall(r'"((?:POSTGRES|REDIS)_\w+)"', SETTINGS.read_text()))
    assert read | looped == declared()


def test_nothing_else_reads_the_environment() -> None:
    readers = {
        str(path.relative_to(settings.BASE_DIR))
        for package in ("cartrita", "cartrita_search")
        for path in (settings.BASE_DIR / package).rglob("*.py")
        if re.search(r"\b(environ|getenv)\b", path.read_text())
    }
    # The two servers' entry points only name the settings module, as Django has them do;
    # the ONNX models set a variable that onnxruntime reads; PostgreSQL's programs are given
    # this process's own, without a password.
    assert readers == {
        "cartrita/settings.py",
        "cartrita/wsgi.py",
        "cartrita/asgi.py",
        "cartrita_search/onnx_model.py",
        "cartrita_search/ops/programs.py",
    }
