"""What is checked of a backup and of the server before a restore touches anything."""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from ..db import direct_parameters, one_row, quoted
from ..errors import PrivilegeMissing, RestoreRefused
from . import dumps
from .databases import APPLICATION
from .dumps import MIB, Contents, Manifest
from .programs import Program, connection_string, find_program, run


def what_is_checked(
    kind: str, manifest: Manifest | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What of a backup is checked, and what cannot be."""
    if manifest is not None:
        return ("SHA-256 of every byte", "versions", "row counts of every table"), ()
    if kind == "plain":
        done: tuple[str, ...] = ("its last line",)
    else:
        done = ("read to its end",)
    return done, ("SHA-256", "row counts") + (("name of the database",) if kind == "plain" else ())


def unusable(path: Path) -> Callable[[str], RestoreRefused]:
    """The error for an archive that pg_restore cannot read, from what that says."""

    def failed(said: str) -> RestoreRefused:
        return RestoreRefused(
            f"The backup {path} cannot be read: {said}.",
            "Nothing was touched. It is truncated, damaged, or made by a newer pg_dump.",
        )

    return failed


def checked_contents(
    path: Path, kind: str, manifest: Manifest | None, pg_restore: Program
) -> Contents:
    """What the backup holds. Without a manifest it is read to its end."""
    if kind == "plain":
        return dumps.check_plain(path)
    contents = dumps.contents(path, pg_restore, unusable(path))
    if manifest is None:
        dumps.read_back(path, pg_restore, unusable(path))
    return contents


def check_version(path: Path, manifest: Manifest | None, contents: Contents, server: int) -> None:
    """Raise `RestoreRefused` for a backup of a newer PostgreSQL than this server."""
    version = manifest.server_version if manifest else contents.server_version
    major = re.match(r"\d+", version)
    if major and int(major[0]) > server:
        raise RestoreRefused(
            f"The backup {path} is of PostgreSQL {version}, and this server is {server}.",
            f"Nothing was touched. Restore it on PostgreSQL {major[0]} or newer.",
        )


def check_name(
    path: Path,
    manifest: Manifest | None,
    contents: Contents,
    target: str,
    of_database: str | None,
) -> None:
    """Raise `RestoreRefused` for a backup of a database of another name than meant."""
    name = manifest.database if manifest else contents.database
    if name and name != (of_database or target):
        raise RestoreRefused(
            f"The backup {path} is of database {name}, and this is database {target}.",
            f"Nothing was touched. If that is meant: --of-database {shlex.quote(name)}",
        )


def check_roles(connection: psycopg.Connection, manifest: Manifest | None) -> None:
    """Raise `RestoreRefused` where a role that the backup names is missing."""
    if manifest is None:
        return
    rows = connection.execute(
        "SELECT r FROM unnest(%s::text[]) AS r WHERE r NOT IN (SELECT rolname FROM pg_roles)",
        [manifest.roles],
    ).fetchall()
    if rows:
        commands = " ".join(f"CREATE ROLE {quoted(role)};" for (role,) in rows)
        raise RestoreRefused(
            "Objects of the backup belong or are granted to roles that this server does not"
            f" have: {', '.join(role for (role,) in rows)}.",
            f"Nothing was touched. Create them first: {commands}",
        )


def check_rights(
    connection: psycopg.Connection, target: str, properties: dict[str, Any] | None
) -> None:
    """Raise `PrivilegeMissing` unless this role may create a database and rename this one."""
    may_create, role = one_row(
        connection,
        "SELECT rolcreatedb OR rolsuper, rolname FROM pg_roles WHERE rolname = current_user",
    )
    if not may_create:
        raise PrivilegeMissing(
            f"Role {role} may not create databases.",
            f"Nothing was touched. As a superuser: ALTER ROLE {quoted(role)} CREATEDB; or restore"
            " with --in-place.",
        )
    if properties is not None:
        owner = properties["owner"]
        (may_rename,) = one_row(connection, "SELECT pg_has_role(%s::name, 'USAGE')", [owner])
        if not may_rename:
            raise PrivilegeMissing(
                f"Database {target} belongs to role {owner}, and {role} may not rename it.",
                f"Nothing was touched. As a superuser: GRANT {quoted(owner)} TO {quoted(role)};"
                " or restore with --in-place.",
            )


def check_prepared(connection: psycopg.Connection, target: str) -> None:
    """Raise `RestoreRefused` where prepared transactions would keep the name."""
    rows = connection.execute(
        "SELECT gid FROM pg_prepared_xacts WHERE database = %s ORDER BY 1", [target]
    ).fetchall()
    if rows:
        raise RestoreRefused(
            f"Database {target} has prepared transactions, which keep its name:"
            f" {', '.join(gid for (gid,) in rows)}.",
            "Nothing was touched. Look at each, then: COMMIT PREPARED or ROLLBACK PREPARED.",
        )


def check_space(connection: psycopg.Connection, manifest: Manifest | None) -> None:
    """Raise `RestoreRefused` where the server's disk is this machine's and too full."""
    if manifest is None or not (connection.info.host or "").startswith("/"):
        return
    row = connection.execute(
        "SELECT setting FROM pg_settings WHERE name = 'data_directory'"
    ).fetchone()  # hidden without pg_read_all_settings
    if row is None or not row[0] or not Path(row[0]).is_dir():
        return
    free = shutil.disk_usage(row[0]).free
    if free < manifest.database_bytes:
        raise RestoreRefused(
            f"The restored database takes about {manifest.database_bytes // MIB} MiB beside the"
            f" present one, and the server's disk has {free // MIB} MiB.",
            "Nothing was touched. Free some space, or drop a database that an earlier restore"
            " kept (--dry-run lists them).",
        )


def check_tables(
    connection: psycopg.Connection, path: Path, manifest: Manifest | None, contents: Contents
) -> None:
    """Raise `RestoreRefused` for a dump that shares no table with the database."""
    if manifest is not None:
        return
    present = table_names(connection)
    if present and len(contents.beyond(present)) == len(contents.tables):
        raise RestoreRefused(
            f"The backup {path} holds none of the tables of database"
            f" {connection.info.dbname}: it is of another one.",
            "Nothing was touched. Use another backup.",
        )


def table_names(connection: psycopg.Connection) -> set[str]:
    """The database's tables, as "schema.table": an extension's too, and partitioned ones."""
    rows = connection.execute(
        """
        SELECT schemaname || '.' || tablename FROM pg_tables
        WHERE schemaname <> 'information_schema' AND schemaname NOT LIKE 'pg\\_%'
        """
    ).fetchall()
    return {name for (name,) in rows}


#: Entries of a table of contents that are no objects of their own, or go with their table.
#: Not a foreign key: it keeps the table that it points to from being dropped.
_NO_OBJECTS = re.compile(
    r"(ACL|COMMENT|DEFAULT ACL|TABLE DATA|SEQUENCE SET|EXTENSION"
    r"|INDEX|CONSTRAINT|DEFAULT|TRIGGER|STATISTICS|ROW SECURITY) "
)
_OURS = "cartrita_search."
#: As many later objects are named.
_NAMED = 12


def check_later_objects(
    connection: psycopg.Connection,
    path: Path,
    manifest: Manifest | None,
    contents: Contents,
    *,
    pg_restore: Program,
    using: str,
) -> None:
    """Raise `RestoreRefused` where the database has objects that the backup lacks.

    They would be in the way of the migrations that make them, run again.
    """
    pg_dump = find_program("pg_dump", connection.info.server_version // 10_000, using=using)
    with (
        tempfile.TemporaryDirectory(prefix="cartrita-") as folder,
        connection_string(direct_parameters(using), APPLICATION) as target,
    ):
        now = Path(folder) / "now.dump"
        run(
            pg_dump,
            [
                "--format=custom",
                "--schema-only",
                "--no-password",
                f"--file={now}",
                f"--dbname={target}",
            ],
            unusable(path),
        )
        present = dumps.contents(now, pg_restore, unusable(path)).entries
    before = {_object(entry) for entry in contents.entries}
    later = [
        _object(entry)
        for entry in present
        if not _NO_OBJECTS.match(entry) and _object(entry) not in before
    ]
    if later:
        later.sort(key=lambda each: not each.startswith("TABLE "))
        shown = ", ".join(later[:_NAMED]) + (" and more" if len(later) > _NAMED else "")
        ours = [each for each in manifest.migrations if each.startswith(_OURS)] if manifest else []
        undo = ours[-1].removeprefix(_OURS) if ours else "zero"
        raise RestoreRefused(
            f"{len(later)} objects were made after the backup, and would be left behind: {shown}.",
            "Nothing was touched. Restore without --in-place (the role needs CREATEDB), or undo"
            f" what was made: manage.py migrate cartrita_search {undo}, then DROP what is left.",
        )


def _object(entry: str) -> str:
    """Type, schema and name, without the owner."""
    return entry.rpartition(" ")[0]
