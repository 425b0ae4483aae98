"""A database of its own, to be backed up and restored: with an awkward name, and rows."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import sql

from cartrita.embedded.postgres import client_program

#: Quotes, a space, a letter of two bytes, and what a shell and LIKE would expand.
NAME = "o\"d'd $ü %_"
#: The wheel's pg_dump, pg_restore and psql.
PROGRAMS = Path(client_program("psql")).parent

ROWS = """
    SELECT upsert_embedding('notes', n::text, '[0.1, 0.9]', 'mini',
                            p_title => 'Note ' || n, p_content => 'Steep green tea, cup ' || n)
    FROM generate_series(1, 40) AS n;
    CREATE TABLE v1_notes (id integer PRIMARY KEY, note text);
    INSERT INTO v1_notes
    SELECT n, (SELECT string_agg(md5(n::text || m), '') FROM generate_series(1, 20) AS m)
    FROM generate_series(1, 500) AS n;
"""


class Site:
    """A migrated database with `ROWS`, on the server that ``parameters`` name."""

    def __init__(self, parameters: dict[str, Any], name: str = NAME) -> None:
        self.parameters = parameters
        self.name = name

    def url(self, user: str = "postgres", password: str = "", name: str | None = None) -> str:
        """For DATABASE_URL and MIGRATE_DATABASE_URL."""
        secret = f":{quote(password, safe='')}" if password else ""
        path = quote(name or self.name, safe="")
        host = quote(str(self.parameters["host"]), safe="")
        return f"postgresql://{user}{secret}@/{path}?host={host}&port={self.parameters['port']}"

    def connect(self, name: str | None = None) -> psycopg.Connection:
        """A connection in autocommit mode, to this database or another one."""
        return psycopg.connect(**self.parameters | {"dbname": name or self.name}, autocommit=True)

    def run(self, *statements: str, name: str | None = None) -> list[tuple[Any, ...]]:
        """The rows of the last statement."""
        with self.connect(name) as connection:
            rows: list[tuple[Any, ...]] = []
            for statement in statements:
                cursor = connection.execute(statement.encode())
                rows = cursor.fetchall() if cursor.description else []
            return rows

    def contents(self, name: str | None = None) -> dict[str, list[str]]:
        """Every row of the tables that matter here, whole."""
        found = {}
        with self.connect(name) as connection:
            for table in ("search_documents", "embeddings", "keyword_statistics", "v1_notes"):
                query = sql.SQL("SELECT t::text FROM {} AS t ORDER BY 1")
                rows = connection.execute(query.format(sql.Identifier(table))).fetchall()
                found[table] = [row for (row,) in rows]
        assert all(found[table] for table in found if table != "keyword_statistics")
        return found

    def oid(self) -> int:
        """The database's identity: another one after a swap."""
        ((oid,),) = self.run("SELECT oid FROM pg_database WHERE datname = current_database()")
        return int(oid)

    def others(self) -> list[str]:
        """The databases beside it that are named after it."""
        with self.connect("postgres") as connection:
            rows = connection.execute(
                "SELECT datname FROM pg_database WHERE starts_with(datname, %s) ORDER BY 1",
                [self.name + "_"],
            )
            return [name for (name,) in rows.fetchall()]

    def drop_all(self) -> None:
        """This database and those beside it."""
        with self.connect("postgres") as connection:
            for name in [self.name, *self.others()]:
                connection.execute(
                    sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
                )


@contextmanager
def programs(folder: Path, name: str, script: str) -> Iterator[Path]:
    """A folder of PostgreSQL's programs, of which one is this shell script.

    The script finds the real one as ``$real``, and is not asked for its version.
    """
    folder.mkdir()
    for program in ("pg_dump", "pg_restore", "psql"):
        (folder / program).symlink_to(PROGRAMS / program)
    (folder / name).unlink()
    (folder / name).write_text(
        f'#!/bin/sh\nreal="{PROGRAMS / name}"\n'
        f'[ "$1" = --version ] && exec "$real" --version\n{script}\n'
    )
    (folder / name).chmod(stat.S_IRWXU)
    yield folder
