"""Whether this process lives, and whether it is of use: /healthz and /readyz.

A process that lives answers `healthz`, whatever the database does: starting it anew
would mend nothing. `readyz` tells whether requests should be sent here.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, field

import psycopg
from django.core.cache import caches
from django.db import DEFAULT_DB_ALIAS
from django.db.migrations.loader import MigrationLoader
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from django_redis.cache import RedisCache

from .watch import Watch

logger = logging.getLogger(__name__)

#: Seconds that a probe waits for the database. Kubernetes gives a probe 1 second unless
#: told otherwise: docs/monitoring.md tells it.
PATIENCE = 2.0

OK = "ok"


@dataclass(frozen=True)
class Readiness:
    """What was looked at, each with "ok" or with what is wrong, and what is told nobody.

    Redis is not needed: searches answer without it.
    """

    checks: dict[str, str]
    #: For the log: whoever may ask for the page need not know it.
    details: list[str] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        return all(found == OK for name, found in self.checks.items() if name != "redis")


@require_safe
@never_cache
def healthz(request: HttpRequest) -> HttpResponse:
    """200: this process answers."""
    return JsonResponse({"status": OK})


@require_safe
@never_cache
def readyz(request: HttpRequest) -> HttpResponse:
    """200 if this process can search, else 503; JSON with what was found either way."""
    found = readiness(PATIENCE)
    _tell(found)
    status = "ready" if found.ready else "not ready"
    response = JsonResponse(
        {"status": status, "checks": found.checks}, status=200 if found.ready else 503
    )
    # Or Django would log an error for every probe of a process that is not ready.
    response._has_been_logged = True  # type: ignore[attr-defined]
    return response


def readiness(wait: float) -> Readiness:
    """Look at the database, its migrations, pgvector and Redis; raises nothing.

    ``wait`` is what the database may take, in seconds.
    """
    try:
        found = watch.answer(wait)
    except TimeoutError:
        found = Readiness({"database": f"no answer within {wait:g} s"})
    except Exception as error:  # noqa: BLE001 - whatever it is, it is not ready
        # libpq's messages have several lines.
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        found = Readiness({"database": "unreachable"}, [cause])
    redis, detail = _redis()
    return Readiness(found.checks | redis, [*found.details, *detail])


def _database(connection: psycopg.Connection) -> Readiness:
    row = connection.execute(
        """
        SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'vector'),
            to_regclass('django_migrations') IS NOT NULL
        """
    ).fetchone()
    has_pgvector, has_migrations = row or (False, False)
    wanted = _latest_migrations()
    applied = set()
    if has_migrations:
        applied = set(
            connection.execute(
                "SELECT app, name FROM django_migrations WHERE (app || '.' || name) = ANY (%s)",
                [[".".join(each) for each in wanted]],
            ).fetchall()
        )
    missing = [".".join(each) for each in wanted if each not in applied]
    return Readiness(
        {
            "database": OK,
            "migrations": "not all are applied" if missing else OK,
            "pgvector": OK if has_pgvector else "not in this database",
        },
        [f"not applied: {', '.join(missing)}"] if missing else [],
    )


watch = Watch(_database, alias=lambda: DEFAULT_DB_ALIAS, seconds=PATIENCE, keep=True)


@functools.cache
def _latest_migrations() -> list[tuple[str, str]]:
    """The last migration of each app, as the code has them: read from the disk once."""
    loader = MigrationLoader(None, ignore_no_migrations=True)
    return [(app, name) for app, name in loader.graph.leaf_nodes()]


def _redis() -> tuple[dict[str, str], list[str]]:
    """How Redis stands, if the default cache is in it."""
    default = caches["default"]
    if not isinstance(default, RedisCache):
        return {}, []
    try:
        # CACHES has its timeouts, and its breaker.
        default.client.get_client().ping()
    except Exception as error:  # noqa: BLE001 - redis-py lets several kinds through
        return {"redis": "unreachable; searches answer without it"}, [
            f"Redis: {type(error).__name__}: {error}"
        ]
    return {"redis": OK}, []


#: What was told last: a probe comes every few seconds, and a log line only with a change.
_told = Readiness({})


def _tell(found: Readiness) -> None:
    global _told  # noqa: PLW0603
    if found.checks == _told.checks:
        return
    wrong = [f"{name}: {what}" for name, what in found.checks.items() if what != OK]
    if wrong:
        logger.warning(
            "%s (%s)",
            "Ready, but degraded" if found.ready else "Not ready",
            "; ".join([*wrong, *found.details]),
        )
    elif _told.checks:
        logger.info("Ready again.")
    _told = found
