"""The log: records as JSON, the id that they share, and what is never in them."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from typing import Any

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.test import AsyncClient, Client

from cartrita_search.logs import HEADER
from tests.conftest import Manage
from tests.test_settings import Load, load

__all__ = ["load"]  # a fixture

NEW = re.compile(r"[0-9a-f]{32}")


def records(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What a process logged, every line of it JSON."""
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stderr.splitlines()]


# --- The id ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        "3f0c9a52-5b0e-4f7e-9c53-2f1f5ab7a2f1",
        "1-67891233-abcdef012345678912345678",  # a load balancer's
        "a" * 64,
    ],
)
def test_the_id_of_the_proxy_is_kept(client: Client, given: str) -> None:
    assert client.get("/healthz", headers={HEADER: given}).headers[HEADER] == given


@pytest.mark.parametrize(
    "given", ["", "short", "a" * 65, "two words", "12345678\n", 'a"b":"c"d', "\u00e4" * 10]
)
def test_an_id_that_is_not_sane_is_replaced(client: Client, given: str) -> None:
    first, second = (
        client.get("/healthz", headers={HEADER: given}).headers[HEADER] for _ in range(2)
    )
    assert NEW.fullmatch(first)
    assert first != second


def test_an_asynchronous_server_gives_each_request_its_own() -> None:
    async def ask() -> list[str]:
        client = AsyncClient()
        ids = [f"request-{number}" for number in range(5)]
        responses = await asyncio.gather(
            *(client.get("/healthz", headers={HEADER: given}) for given in ids)
        )
        return [response.headers[HEADER] for response in responses]

    assert asyncio.run(ask()) == [f"request-{number}" for number in range(5)]


def test_every_record_of_a_request_has_its_id_and_others_the_process_s(manage: Manage) -> None:
    script = """
import logging
from django.conf import settings
from django.test import Client
settings.ALLOWED_HOSTS = ["testserver"]
logging.getLogger("house").info("before %s", "all", extra={"step": "work:begin"})
response = Client().get("/nowhere", headers={"X-Request-ID": "given-by-proxy"})
assert response["X-Request-ID"] == "given-by-proxy"
logging.getLogger("house").warning("after")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("house").exception("failed")
"""
    before, missing, after, failed = records(
        manage("shell", "--verbosity=0", "-c", script, LOG_FORMAT="json")
    )
    assert set(before) == {"time", "level", "logger", "message", "step", "run_id"}
    assert before["level"] == "INFO"
    assert before["logger"] == "house"
    assert before["message"] == "before all"
    assert before["step"] == "work:begin"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", before["time"])
    # Django tells of it after the last middleware.
    assert missing["message"] == "Not Found: /nowhere"
    assert missing["request_id"] == "given-by-proxy"
    assert missing["status_code"] == 404
    assert "run_id" not in missing
    assert "request_id" not in after
    assert NEW.fullmatch(before["run_id"])
    assert before["run_id"] == after["run_id"] == failed["run_id"]
    assert "ZeroDivisionError" in failed["exc_info"]


def test_another_run_has_another_id(manage: Manage) -> None:
    script = "import logging; logging.getLogger('house').info('run')"
    runs = [
        records(manage("shell", "--verbosity=0", "-c", script, LOG_FORMAT="json"))[0]["run_id"]
        for _ in range(2)
    ]
    assert runs[0] != runs[1]


# --- What is never in it -------------------------------------------------------------

PASSWORD, TOKEN, NEEDLE = "hunter2-hidden", "token-hidden-from-logs", "xylophone"

SCRIPT = f"""
import logging
from django.conf import settings
from django.test import Client
from cartrita_search.errors import SearchError
from cartrita_search.retrieval import keyword_search, similarity_search
from cartrita_search.db import direct_connection

settings.ALLOWED_HOSTS = ["testserver"]
client = Client(raise_request_exception=False)
client.get("/nowhere?q={NEEDLE}")
client.get("/metrics", headers={{"authorization": "Bearer {TOKEN}"}})
client.get("/metrics", headers={{"authorization": "Bearer {TOKEN}-wrong"}})
client.get("/readyz")
client.get("/admin/?q={NEEDLE}", headers={{"cookie": "sessionid=abcdefgh"}})
for search in (keyword_search, similarity_search):
    try:
        search("{NEEDLE}")
    except Exception as error:
        logging.getLogger("house").exception("a search failed")
try:
    with direct_connection("house"):
        pass
except SearchError:
    logging.getLogger("house").exception("no connection")
"""


def at_its_most_talkative(manage: Manage, url: str, **variables: str) -> str:
    """All that a process with DEBUG on logs at level DEBUG, having met every secret."""
    done = manage(
        *("shell", "--verbosity=0", "-c", SCRIPT),
        **{
            "LOG_FORMAT": "json",
            "LOG_LEVEL": "DEBUG",
            "DATABASE_URL": url,
            "METRICS_TOKEN": TOKEN,
            "REDIS_URL": f"redis://:{PASSWORD}@127.0.0.1:1/0",
            "RECORD_SEARCHES": "true",
            "SECRET_KEY": f"{PASSWORD}-key",
        }
        | variables,
    )
    assert records(done)
    return done.stderr


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("clean_tables")
def test_no_password_token_or_query_text_when_all_is_well(
    manage: Manage, manage_environment: dict[str, str]
) -> None:
    url = manage_environment["DATABASE_URL"].replace("@", f":{PASSWORD}@")
    logged = at_its_most_talkative(manage, url)
    assert "Not Found: /nowhere" in logged
    for secret in (PASSWORD, TOKEN, NEEDLE):
        assert secret not in logged


def test_no_password_token_or_query_text_when_nothing_is_there(manage: Manage) -> None:
    url = f"postgres://me:{PASSWORD}@127.0.0.1:1/nothing"
    logged = at_its_most_talkative(manage, url, MIGRATE_DATABASE_URL=url)
    assert "Connection refused" in logged
    assert "Traceback" in logged
    for secret in (PASSWORD, TOKEN, NEEDLE):
        assert secret not in logged


# --- The setting -----------------------------------------------------------------------


def test_the_format_is_a_line_unless_json_is_asked_for(load: Load) -> None:
    assert load(DEBUG="true")["LOGGING"]["handlers"]["console"]["formatter"] == "line"
    loaded = load(DEBUG="true", LOG_FORMAT="JSON")
    assert loaded["LOGGING"]["handlers"]["console"]["formatter"] == "json"
    with pytest.raises(ImproperlyConfigured, match="LOG_FORMAT must be line or json, not 'xml'"):
        load(DEBUG="true", LOG_FORMAT="xml")


def test_the_id_is_given_before_all_other_middleware() -> None:
    assert settings.MIDDLEWARE[0] == "cartrita_search.logs.request_id"
