"""Databases of one server beside each other: their names, and the swap of two.

A restore loads into ``<name>__restore_<random>``, gives that the name, and keeps the former
database as ``<name>__before_<time>``.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg
from django.db import connections
from psycopg import sql

from ..db import direct_connection, direct_parameters, one_row, quoted
from ..errors import RestoreFailed
from .steps import step

#: The sessions of a restore.
APPLICATION = "cartrita restore"
#: What PostgreSQL keeps of a name, in bytes.
MAXIMUM_NAME = 63
#: Between two looks for sessions to end during the swap, in seconds.
TERMINATE_EVERY = 0.05

SCRATCH = "__restore_"
KEPT = "__before_"


@dataclass(frozen=True)
class KeptDatabase:
    """A database that an earlier restore replaced."""

    name: str
    bytes: int


def target_database(using: str) -> str:
    """The name of the database that is backed up and restored."""
    parameters = direct_parameters(using)
    return str(parameters.get("dbname") or parameters.get("user") or "")


@contextmanager
def maintenance_connection(target: str, using: str) -> Iterator[psycopg.Connection]:
    """A connection to a database that is not the one restored: that one may not be there."""
    other = "postgres" if target != "postgres" else "template1"
    with patient_connection(using, other) as connection:
        yield connection


@contextmanager
def patient_connection(using: str, dbname: str) -> Iterator[psycopg.Connection]:
    """A `direct_connection` without a role's or database's limits, which are for applications."""
    with direct_connection(APPLICATION, using=using, dbname=dbname) as connection:
        connection.execute(
            """
            SELECT set_config(name, CASE vartype WHEN 'bool' THEN 'off' ELSE '0' END, false)
            FROM pg_settings
            WHERE name IN ('statement_timeout', 'transaction_timeout', 'lock_timeout',
                           'default_transaction_read_only')
            """
        )
        yield connection


def _derived_name(name: str, suffix: str) -> str:
    """``name`` and ``suffix``, within what PostgreSQL keeps of a name, and still one's own."""
    if len((name + suffix).encode()) <= MAXIMUM_NAME:
        return name + suffix
    own = "_" + hashlib.sha256(name.encode()).hexdigest()[:8]
    room = MAXIMUM_NAME - len(suffix) - len(own)
    return name.encode()[:room].decode(errors="ignore") + own + suffix


def _databases(connection: psycopg.Connection, target: str, mark: str, rest: str) -> list[str]:
    """The databases named after ``target``, ``mark`` and something that matches ``rest``."""
    rows = connection.execute("SELECT datname FROM pg_database ORDER BY 1").fetchall()
    found = []
    for (name,) in rows:
        _, marked, suffix = name.rpartition(mark)
        whole = marked + suffix
        if marked and re.fullmatch(rest, suffix) and name == _derived_name(target, whole):
            found.append(name)
    return found


def kept_databases(connection: psycopg.Connection, target: str) -> list[KeptDatabase]:
    """The databases that earlier restores of ``target`` replaced."""
    return [
        KeptDatabase(name, database_size(connection, name))
        for name in _databases(connection, target, KEPT, r"\d{8}T\d{6}")
    ]


def database_size(connection: psycopg.Connection, name: str) -> int:
    """Its size in bytes, indexes included; 0 where this role may not connect to it."""
    try:
        (size,) = one_row(connection, "SELECT pg_database_size(%s::name)", [name])
    except psycopg.errors.InsufficientPrivilege:  # no CONNECT on it
        return 0
    return int(size)


def drop_database(connection: psycopg.Connection, name: str) -> None:
    """Drop it if it is there, and end the sessions in it."""
    connection.execute(
        sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    )


def swap(
    connection: psycopg.Connection, target: str, incoming: str, using: str, *, exists: bool
) -> str | None:
    """Give ``incoming`` the name ``target``; returns the name of the database that had it.

    The first rename locks the name: who connects from then on waits, and is served by the
    new database or told to try again. Sessions that are there already are ended meanwhile,
    which the rename waits for (five seconds, in PostgreSQL). Connections are never
    disallowed in between, so that a kill leaves no database that nobody can reach.
    """
    step("restore", "swap", target)
    connections.close_all()  # ours would be ended too
    kept = _free_name(connection, target) if exists else None
    rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
    try:
        with _ending_sessions([target, incoming], using), connection.transaction():
            if kept is not None:
                connection.execute(rename.format(sql.Identifier(target), sql.Identifier(kept)))
            connection.execute(rename.format(sql.Identifier(incoming), sql.Identifier(target)))
            step("restore", "commit", target)
    except psycopg.errors.ObjectInUse as error:
        raise RestoreFailed(
            f"Sessions of database {target} did not end: {_sessions(connection, target)}.",
            f"Database {target} is as it was. End them, or: GRANT pg_signal_backend TO"
            f" {quoted(connection.info.user)}; and run this again.",
        ) from error
    return kept


def slots_left_behind(connection: psycopg.Connection, target: str) -> list[str]:
    """Of each logical replication slot, what to see to when ``target`` is replaced.

    A slot belongs to the database it was made in, whatever that is called.
    """
    rows = connection.execute(
        "SELECT slot_name::text FROM pg_replication_slots"
        " WHERE database = %s AND NOT temporary ORDER BY 1",
        [target],
    ).fetchall()
    return [
        f"replication slot {name} stays with the former database, and keeps its WAL on the disk"
        " until it is dropped. Make one anew here for its subscriber, then:"
        f" SELECT pg_drop_replication_slot('{name}');"
        for (name,) in rows
    ]


def _free_name(connection: psycopg.Connection, target: str) -> str:
    moment = datetime.now(UTC)
    taken = {kept.name for kept in kept_databases(connection, target)}
    while (name := _derived_name(target, f"{KEPT}{moment:%Y%m%dT%H%M%S}")) in taken:
        moment += timedelta(seconds=1)
    return name


def _sessions(connection: psycopg.Connection, database: str) -> str:
    rows = connection.execute(
        """
        SELECT format('pid %%s (role %%s, %%s)', pid, usename, nullif(application_name, ''))
        FROM pg_stat_activity WHERE datname = %s ORDER BY pid LIMIT 5
        """,
        [database],
    ).fetchall()
    return ", ".join(each for (each,) in rows) or "they are gone now"


@contextmanager
def _ending_sessions(names: list[str], using: str) -> Iterator[None]:
    """End the sessions of these databases, again and again, for as long as the block runs."""
    done = threading.Event()

    def end() -> None:
        with maintenance_connection(names[0], using) as connection:
            while not done.wait(TERMINATE_EVERY):
                rows = connection.execute(
                    "SELECT pid FROM pg_stat_activity"
                    " WHERE datname = ANY (%s) AND usename IS NOT NULL",
                    [names],
                ).fetchall()
                for (pid,) in rows:
                    try:
                        connection.execute("SELECT pg_terminate_backend(%s)", [pid])
                    except psycopg.errors.InsufficientPrivilege:
                        continue  # the rename tells of it, if it does not end by itself

    thread = threading.Thread(target=end, name="restore-ends-sessions", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def scratch_name(target: str) -> str:
    """A new name for what is to become ``target``.

    Its own each time, so that a pg_restore that outlived its restore can reach nothing else.
    """
    return _derived_name(target, SCRATCH + secrets.token_hex(4))


def scratch_databases(connection: psycopg.Connection, target: str) -> list[str]:
    """What restores of ``target`` that were killed left behind."""
    return _databases(connection, target, SCRATCH, "[0-9a-f]{8}")


def drop_statement(name: str) -> str:
    """What to type into psql to drop it."""
    return f"DROP DATABASE {quoted(name)};"
