"""A database of its own for an evaluation, dropped at its end.

BM25 weighs a word by how rare it is among all documents of its language, so a
collection beside live documents would change their ranking, and they its own. A
transaction that is rolled back would not do either: refreshing the statistics and
building an index hold writers up until it ends, and VACUUM cannot run in one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from django.core.management import call_command
from django.db import DatabaseError, OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import errors, sql

from ..db import missing_requirement
from ..errors import ScratchDatabaseRefused
from ..models import SearchSettings

#: Django alias of the scratch database while there is one.
ALIAS = "cartrita_search_evaluation"

#: What tells a database of ours, which may be dropped, from anybody else's.
_COMMENT = "Scratch database of evaluate_search; it may be dropped."

_ELSEWHERE = "or evaluate on a server of your own: the embedded one, with DATABASE_URL unset."


@contextmanager
def scratch_database(using: str, *, keep: bool = False) -> Iterator[str]:
    """Yield the alias of a new database on the server of `using`, migrated and empty.

    It is named like that of `using` with ``_evaluation`` behind, has the same
    `SearchSettings`, and is dropped at the end, after an error and Ctrl-C too. `keep`
    leaves it if all went well. What a killed evaluation left, or a kept one, is replaced.

    Raises `ScratchDatabaseRefused` if the role may not create a database, another
    evaluation is at work, or pgvector cannot be had.
    """
    settings = SearchSettings.objects.using(using).get()
    server = connections.create_connection(using)
    try:
        with server.cursor() as cursor:
            cursor.execute("SELECT current_database(), current_user")
            database, role = cursor.fetchone()
        name = f"{database[:50]}_evaluation"
        _create(server, name, role)
        finished = False
        try:
            _connect(using, name)
            call_command("migrate", "cartrita_search", database=ALIAS, verbosity=0)
            settings.save(using=ALIAS)
            yield ALIAS
            finished = True
        finally:
            _disconnect()
            if not (keep and finished):
                _execute(server, "DROP DATABASE {} WITH (FORCE)", name)
    finally:
        server.close()


def _create(server: BaseDatabaseWrapper, name: str, role: str) -> None:
    with server.cursor() as cursor:
        cursor.execute(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s",
            [name],
        )
        former = cursor.fetchone()
    if former is not None and former[0] != _COMMENT:
        raise ScratchDatabaseRefused(
            f'A database "{name}" exists already and is not of an evaluation.',
            "It was left alone. Rename it, or drop it if it is not needed.",
        )
    try:
        if former is not None:
            _execute(server, "DROP DATABASE {}", name)
        _execute(server, "CREATE DATABASE {}", name)
        _execute(server, "COMMENT ON DATABASE {} IS {}", name, _COMMENT)
    except DatabaseError as error:
        if isinstance(error.__cause__, errors.InsufficientPrivilege):
            raise ScratchDatabaseRefused(
                f'The role "{role}" may not create the scratch database "{name}".',
                f'Run as a superuser: ALTER ROLE "{role}" CREATEDB; {_ELSEWHERE}',
            ) from error
        if isinstance(error.__cause__, (errors.ObjectInUse, errors.DuplicateDatabase)):
            raise ScratchDatabaseRefused(
                f'The scratch database "{name}" is in use.',
                "Another evaluation is at work, or a kept one is being looked at: "
                "try again when it has ended.",
            ) from error
        raise


def _connect(using: str, name: str) -> None:
    """Make `ALIAS` the same as `using`, in another database."""
    settings = copy.deepcopy(connections[using].settings_dict)
    settings["NAME"] = name
    settings["OPTIONS"].pop("pool", None)  # a pool would outlive the database
    connections.databases[ALIAS] = settings
    try:
        missing = missing_requirement(connections[ALIAS])
    except OperationalError as error:
        raise ScratchDatabaseRefused(
            f'The scratch database "{name}" cannot be reached: {str(error).strip()}.',
            "A PgBouncer in between must pass it on: add it, or *, to its [databases].",
        ) from error
    if missing is not None:
        raise ScratchDatabaseRefused(
            f"The scratch database has no pgvector: {missing.problem}",
            f"Run as a superuser in template1, so that new databases have it: "
            f"CREATE EXTENSION vector; {_ELSEWHERE}",
        )


def _disconnect() -> None:
    if ALIAS in connections.databases:
        connections[ALIAS].close()
        del connections[ALIAS]
        del connections.databases[ALIAS]


def _execute(server: BaseDatabaseWrapper, statement: str, name: str, *literals: str) -> None:
    """Run a statement that takes no parameters, only a database's name and literals."""
    with server.cursor() as cursor:
        cursor.execute(
            sql.SQL(statement).format(sql.Identifier(name), *map(sql.Literal, literals))
        )
