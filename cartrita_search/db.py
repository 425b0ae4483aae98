"""SQL files, roles and facts about the server: what touches PostgreSQL directly."""

from __future__ import annotations

import functools
import hashlib
import math
import random
import struct
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import psycopg
from django.apps import apps
from django.db import (
    DEFAULT_DB_ALIAS,
    OperationalError,
    ProgrammingError,
    connections,
    transaction,
)
from django.db.migrations.recorder import MigrationRecorder
from psycopg import sql
from psycopg.adapt import Dumper
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import InsufficientPrivilege
from psycopg.pq import Format

from .conf import search_settings
from .errors import DatabaseUnreachable, InvalidArgument, LockHeld, PoolerRefused

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.backends.utils import CursorWrapper

SQL_ROOT = Path(__file__).parent / "sql"

MINIMUM_POSTGRESQL = 15
MINIMUM_PGVECTOR = (0, 8, 0)
#: 0.8.4 fixed the repair of HNSW graphs and a corruption during vacuum.
ADVISED_PGVECTOR = (0, 8, 4)
#: The most that a value of type vector holds.
MAXIMUM_DIMENSIONS = 16_000


@functools.cache
def read_sql(path: str) -> str:
    """The text of a file below ``sql/``, named like ``retrieval/hybrid_search.v1.sql``."""
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"not a path below sql/: {path}")
    return (SQL_ROOT / relative).read_text(encoding="utf-8")


def vector_binary(vector: Sequence[float]) -> bytes:
    """pgvector's binary form. A NumPy array is taken as well as any sequence.

    Raises `InvalidArgument` for what is no vector of finite single-precision numbers.
    """
    try:
        given = vector.tolist() if hasattr(vector, "tolist") else iter(vector)
        values = array("f", given)  # single precision, as the column has it
        finite = math.isfinite(sum(values))
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument(
            "The vector holds something that is not a number.", "Nothing was changed."
        ) from error
    if not values or not finite:
        raise InvalidArgument(
            "The vector is empty, or holds NaN or infinity.",
            "Nothing was changed. Check the embedder's output.",
        )
    if len(values) > MAXIMUM_DIMENSIONS:
        raise InvalidArgument(
            f"The vector has {len(values)} dimensions; pgvector holds {MAXIMUM_DIMENSIONS}.",
            "Nothing was changed.",
        )
    if sys.byteorder == "little":
        values.byteswap()
    return struct.pack("!HH", len(values), 0) + values.tobytes()


class _Vector:
    """A vector in `vector_binary` form, on its way to the server."""

    __slots__ = ("binary",)

    def __init__(self, binary: bytes) -> None:
        self.binary = binary


class _VectorDumper(Dumper):
    """Sends it as it is; the statement's ``::vector`` names the type."""

    format = Format.BINARY

    def dump(self, obj: _Vector) -> bytes:
        return obj.binary


psycopg.adapters.register_dumper(_Vector, _VectorDumper)


def vector_argument(vector: Sequence[float]) -> object:
    """A vector as an argument of a statement run by `binary_cursor`, as ``%b::vector``."""
    return _Vector(vector_binary(vector))


@contextmanager
def binary_cursor(
    connection: BaseDatabaseWrapper, kind: type[psycopg.Cursor[Any]] = psycopg.Cursor
) -> Iterator[CursorWrapper]:
    """Django's cursor, but arguments and rows travel in binary form, apart from the statement.

    Written into the statement as text, as Django's own cursor does it, a vector of 384
    dimensions costs a similarity search an eighth of its time. Rows come as psycopg's
    types: JSON is parsed. Nothing is prepared unless the
    connection's ``prepare_threshold`` asks for it. `psycopg.RawCursor` as ``kind`` takes
    PostgreSQL's own placeholders.
    """
    with connection.cursor() as cursor:
        raw = kind(connection.connection)
        raw.format = Format.BINARY
        cursor.cursor = raw
        yield cursor


def sql_checksum(text: str) -> str:
    """SHA-256 of a text, the same whatever its line endings and trailing blanks.

    An editor or a checkout with other line endings must not look like a change
    of a released file.
    """
    lines = [line.rstrip() for line in text.splitlines()]
    return hashlib.sha256("\n".join(lines).strip().encode()).hexdigest()


@dataclass(frozen=True)
class Requirement:
    """Something the server lacks, and the statement or package that mends it."""

    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}"


def version_tuple(text: str) -> tuple[int, ...]:
    """``0.8.10`` as numbers, which compare as versions do."""
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def missing_requirement(
    connection: BaseDatabaseWrapper, *, to_migrate: bool = True
) -> Requirement | None:
    """What stands in the way of migrating this database, or None.

    Changes nothing. Checked before any migration runs, so that a missing
    extension leaves the database untouched. Without ``to_migrate`` it is what stands in
    the way of using it, which takes no right to create tables.
    """
    minimum = ".".join(map(str, MINIMUM_PGVECTOR))
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT current_setting('server_version_num')::integer / 10000,
                   current_schema(),
                   e.extversion,
                   e.extnamespace::regnamespace::text,
                   a.default_version,
                   current_database(),
                   has_schema_privilege('public', 'CREATE'),
                   quote_ident(current_user)
            FROM (SELECT) AS one
            LEFT JOIN pg_extension AS e ON e.extname = 'vector'
            LEFT JOIN pg_available_extensions AS a ON a.name = 'vector'
            """
        )
        row = cursor.fetchone()
    server, schema, installed, namespace, available, database, may_create, role = row
    if server < MINIMUM_POSTGRESQL:
        return Requirement(
            f"PostgreSQL {server} is too old; {MINIMUM_POSTGRESQL} or newer is needed.",
            "Upgrade the server, or name another one in DATABASE_URL.",
        )
    if schema != "public":
        return Requirement(
            f'New tables would go to schema "{schema}", but every function here pins "public".',
            "Take search_path out of the connection's options or the role's settings.",
        )
    if installed is None and available is None:
        return Requirement(
            "pgvector is not installed on the database server.",
            f"Install the server's package (Debian: postgresql-{server}-pgvector, version "
            f"{minimum} or newer), then run: CREATE EXTENSION vector;",
        )
    if installed is not None and version_tuple(installed) < MINIMUM_PGVECTOR:
        if available is not None and version_tuple(available) >= MINIMUM_PGVECTOR:
            return Requirement(
                f"pgvector {installed} is too old; {minimum} or newer is needed.",
                f"Run in database {database}: ALTER EXTENSION vector UPDATE;",
            )
        return Requirement(
            f"pgvector {installed} is too old; {minimum} or newer is needed.",
            "Install a newer package on the server, then run: ALTER EXTENSION vector UPDATE;",
        )
    if installed is None and version_tuple(available) < MINIMUM_PGVECTOR:
        return Requirement(
            f"The server offers pgvector {available}; {minimum} or newer is needed.",
            "Install a newer package on the server, then run: CREATE EXTENSION vector;",
        )
    if installed is None and not _may_create_pgvector(connection):
        return Requirement(
            f"pgvector is not in database {database}, and this role may not create it.",
            "Run there as a superuser, or as your provider's administrator: "
            "CREATE EXTENSION vector;",
        )
    if to_migrate and not may_create:
        return Requirement(
            f"Role {role} may not create tables in schema public of database {database}.",
            f"Run there as the schema's owner: GRANT CREATE ON SCHEMA public TO {role};",
        )
    if installed is not None and namespace != "public":
        return Requirement(
            f'pgvector is in schema "{namespace}", but every function here pins "public".',
            "Run as the extension's owner: ALTER EXTENSION vector SET SCHEMA public;",
        )
    return None


def _may_create_pgvector(connection: BaseDatabaseWrapper) -> bool:
    """Whether this role may create the extension, found out by doing so and taking it back.

    The catalogs do not tell: they list pgvector as untrusted, for superusers
    only, also where a managed service lets others create it.
    """
    try:
        with transaction.atomic(using=connection.alias):
            with connection.cursor() as cursor:
                cursor.execute("CREATE EXTENSION vector WITH SCHEMA public")
            transaction.set_rollback(True, using=connection.alias)
    except ProgrammingError as error:
        if isinstance(error.__cause__, InsufficientPrivilege):
            return False
        raise
    return True


def pgvector_version(connection: BaseDatabaseWrapper) -> tuple[int, ...] | None:
    """The installed version of pgvector, (0, 8, 6) for instance, or None."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
        row = cursor.fetchone()
    return version_tuple(row[0]) if row else None


#: The advisory locks of work that one process at a time may do in one database.
#: rebuild_vector_indexes() takes the first one as well.
REBUILD_LOCK = 1129533001
MIGRATION_LOCK = 1129533002
IMPORT_LOCK = 1129533003
BACKUP_LOCK = 1129533010
#: Held in the maintenance database, as the one restored need not exist.
RESTORE_LOCK = 1129533011

#: Between two looks at a lock that somebody else holds, in seconds.
_POLL_SECONDS = (0.1, 0.4)


@dataclass(frozen=True)
class LockHolder:
    """The session that holds an advisory lock."""

    pid: int
    role: str | None
    application: str | None
    client: str | None
    #: How long the session has existed, as PostgreSQL writes an interval of whole seconds.
    age: str | None

    def __str__(self) -> str:
        return (
            f"pid {self.pid} (role {self.role or '?'}, {self.application or 'unnamed'}, "
            f"from {self.client or 'local'}, connected {self.age or '?'} ago)"
        )


#: What Django and psycopg take beside libpq's own parameters.
_NOT_LIBPQ = {"context", "cursor_factory", "prepare_threshold", "server_side_binding"}


def direct_parameters(using: str = DEFAULT_DB_ALIAS) -> dict[str, Any]:
    """libpq's parameters of the server itself, the password among them.

    By DIRECT_DATABASE_URL if that is set, else of Django's database ``using``.
    """
    if url := search_settings().direct_database_url:
        try:
            return dict(conninfo_to_dict(url))
        except psycopg.ProgrammingError:
            # Its message may quote the part with the password.
            raise InvalidArgument(
                "MIGRATE_DATABASE_URL cannot be read.",
                "Nothing was changed. It must be like postgres://user:password@host:5432/name,"
                " with special characters of the password written as %XX.",
            ) from None
    parameters = connections[using].get_connection_params()
    return {key: value for key, value in parameters.items() if key not in _NOT_LIBPQ}


@contextmanager
def direct_connection(
    application_name: str, *, using: str = DEFAULT_DB_ALIAS, dbname: str | None = None
) -> Iterator[psycopg.Connection]:
    """A connection of one's own to the server itself, in autocommit mode.

    Where `direct_parameters` say, to another database of that server by ``dbname``.
    Raises `PoolerRefused` if a pooler is in between all the same: it would hand the
    session, and the lock it holds, to somebody else.
    """
    settings = direct_parameters(using) | {"application_name": application_name}
    if dbname is not None:
        settings["dbname"] = dbname
    try:
        try:
            connection = psycopg.connect(autocommit=True, **settings)
        except psycopg.OperationalError:
            if dbname is not None or search_settings().direct_database_url:
                raise
            # The embedded server makes its database with Django's first connection.
            connections[using].ensure_connection()
            connection = psycopg.connect(autocommit=True, **settings)
    except (psycopg.OperationalError, OperationalError) as error:
        raise DatabaseUnreachable(
            f"No connection to the database server: {' '.join(str(error).split())}.",
            "Nothing was changed. Check DATABASE_URL, or MIGRATE_DATABASE_URL if it is set.",
        ) from error
    with connection:
        # A pooler invents the number that it names at the start.
        (pid,) = connection.execute("SELECT pg_backend_pid()").fetchone() or (None,)
        if pid != connection.info.backend_pid:
            raise PoolerRefused(
                "The connection goes through a pooler, which cannot hold a session's lock.",
                "Nothing was changed. Set MIGRATE_DATABASE_URL to the server itself.",
            )
        # An idle session holds the lock for as long as the work takes. Not as an option of
        # the connection: a pooler would refuse that one before it is known for a pooler.
        connection.execute("SET idle_session_timeout = 0")
        # What takes a session of its own takes its time.
        connection.execute("SET statement_timeout = 0")
        yield connection


def quoted(name: str) -> str:
    """The name as it is written in a statement, for those that are to be typed in."""
    return sql.Identifier(name).as_string(None)


def one_row(
    connection: psycopg.Connection, query: str | sql.Composed, arguments: Sequence[object] = ()
) -> tuple[Any, ...]:
    """The row of a query that always gives one."""
    statement = query.encode() if isinstance(query, str) else query
    # Without arguments a % in a name is no placeholder.
    cursor = connection.execute(statement, arguments or None)
    row = cursor.fetchone()
    if row is None:
        raise LookupError("a query that always gives a row gave none")
    return tuple(row)


def lock_holder(connection: psycopg.Connection, key: int) -> LockHolder | None:
    """Who holds the advisory lock ``key`` in this database, or None."""
    row = connection.execute(
        """
        SELECT l.pid, a.usename, a.application_name, a.client_addr::text,
               date_trunc('second', clock_timestamp() - a.backend_start)::text
        FROM pg_locks AS l
        LEFT JOIN pg_stat_activity AS a USING (pid)
        WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
          AND l.database = (
              SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
          AND (l.classid::bigint << 32) | l.objid::bigint = %s
        LIMIT 1
        """,
        [key],
    ).fetchone()
    return LockHolder(*row) if row else None


@contextmanager
def advisory_lock(
    connection: psycopg.Connection,
    key: int,
    *,
    wait: float = 0.0,
    waiting: Callable[[LockHolder | None], object] | None = None,
) -> Iterator[None]:
    """Hold the advisory lock ``key`` on this connection of `direct_connection`.

    Looks again and again for ``wait`` seconds, and never queues: a session that waits
    for a lock within a statement holds a snapshot, for which CREATE INDEX CONCURRENTLY
    of the lock's holder waits in turn. ``waiting`` is called with each new holder.
    Raises `LockHeld` at the deadline.
    """
    deadline = time.monotonic() + wait
    seen: LockHolder | None = None
    while connection.execute("SELECT pg_try_advisory_lock(%s)", [key]).fetchone() != (True,):
        holder = lock_holder(connection, key)
        if waiting is not None and holder is not None and (seen is None or holder.pid != seen.pid):
            waiting(holder)
        seen = holder or seen
        left = deadline - time.monotonic()
        if left <= 0:
            raise LockHeld(
                f"Another process is at it: {seen or 'it ended just now'}.",
                "Nothing was changed. Run this again when it has finished.",
            )
        time.sleep(min(left, random.uniform(*_POLL_SECONDS)))  # noqa: S311 - no secret
    try:
        yield
    finally:
        # A connection that is gone took the lock with it.
        with suppress(psycopg.OperationalError):
            connection.execute("SELECT pg_advisory_unlock(%s)", [key])


#: What an application may do with each table; the functions are SECURITY INVOKER.
_TABLE_PRIVILEGES = {
    "search_documents": "SELECT, INSERT, UPDATE, DELETE",
    "embeddings": "SELECT, INSERT, UPDATE, DELETE",
    "embedding_models": "SELECT, INSERT, UPDATE",
    "embedding_refusals": "SELECT, INSERT, UPDATE, DELETE",
    "retrieval_configs": "SELECT, INSERT, UPDATE, DELETE",
    "search_performance_metrics": "SELECT, INSERT, DELETE",
    "cache_invalidation_log": "SELECT, INSERT, DELETE",
    # By the triggers on what is written, whoever writes.
    "search_generations": "SELECT, INSERT, UPDATE, DELETE",
    "redis_sessions": "SELECT, INSERT, UPDATE, DELETE",
    # refresh_keyword_statistics belongs to loading.
    "keyword_statistics": "SELECT, INSERT, UPDATE, DELETE",
    "keyword_corpora": "SELECT, INSERT, UPDATE, DELETE",
    "source_checkpoints": "SELECT, INSERT, UPDATE, DELETE",
    "operator_actions": "SELECT, INSERT, DELETE",
    "search_judgements": "SELECT, INSERT, UPDATE, DELETE",
    "search_settings": "SELECT",
    "schema_migrations": "SELECT",
    "vector_search_stats": "SELECT",
}


#: Building and dropping indexes takes the table's owner in any case.
_OWNER_ONLY = {
    "rebuild_vector_indexes",
    "tune_vector_index",
    "swap_vector_index",
    "drop_vector_index",
}


def grant_to_role(connection: BaseDatabaseWrapper, role: str, *, site: bool = False) -> list[str]:
    """Let `role` use the tables and functions of this package; returns their names.

    With ``site`` it is the role that the whole site runs as: it may use the tables of all
    other installed apps too, and edit search_settings. Objects that are not there (yet, or
    any more) are passed over, so it can run after any migration. Granting twice changes
    nothing.

    Raises `InvalidArgument` if there is no such role.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM pg_roles WHERE rolname = %s", [role])
        if cursor.fetchone() is None:
            raise InvalidArgument(
                f'CARTRITA_SEARCH["GRANT_ROLE"] names the role "{role}", which does not exist.',
                "The migrations are applied; create the role and run migrate again to grant.",
            )
        grantee = sql.Identifier(role)
        privileges = _TABLE_PRIVILEGES | (_site_privileges() if site else {})
        cursor.execute(
            """
            SELECT c.relname FROM pg_class AS c
            WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY (%s)
            ORDER BY 1
            """,
            [list(privileges)],
        )
        granted = [row[0] for row in cursor.fetchall()]
        for table in granted:
            cursor.execute(
                sql.SQL("GRANT {} ON public.{} TO {}").format(
                    sql.SQL(privileges[table]), sql.Identifier(table), grantee
                )
            )
        for function in _functions(connection):
            cursor.execute(
                sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(sql.SQL(function), grantee)
            )
            granted.append(function)
    return granted


def _site_privileges() -> dict[str, str]:
    """What the site's own role needs besides: it keeps people, sessions and the admin's log."""
    others = (
        model._meta.db_table
        for model in apps.get_models(include_auto_created=True)
        if model._meta.managed  # ours are not
    )
    return {
        **dict.fromkeys(others, "SELECT, INSERT, UPDATE, DELETE"),
        # Whether all are applied is asked before it begins, and by its probes.
        MigrationRecorder.Migration._meta.db_table: "SELECT",
        # Edited in the admin.
        "search_settings": "SELECT, UPDATE",
    }


def _functions(connection: BaseDatabaseWrapper) -> list[str]:
    """The functions of our SQL files that may be granted, as ``name(argument types)``."""
    # One object a file, so the file's name is the function's, with a suffix for
    # an overload.
    names = {path.name.split(".")[0].removesuffix("_uuid") for path in SQL_ROOT.glob("*/*.v*.sql")}
    names -= _OWNER_ONLY
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT p.oid::regprocedure::text FROM pg_proc AS p
            WHERE p.pronamespace = 'public'::regnamespace AND p.proname = ANY (%s)
            ORDER BY 1
            """,
            [sorted(names)],
        )
        return [row[0] for row in cursor.fetchall()]
