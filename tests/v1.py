"""A Cartrita v1 database, and what the earlier SQL runner had made of one."""

from __future__ import annotations

from pathlib import Path

import psycopg

_SQL = Path(__file__).parent / "v1_sql"

#: The files of the earlier SQL runner, in the order in which it applied them.
RUNNER_FILES = (
    "0001_initial_baseline.sql",
    "0002_add_vector_extension.sql",
    "0003_optimize_vector_indexes.sql",
    "0004_add_redis_hybrid_search.sql",
)

#: The passwords of the people in v1's table `users`, by e-mail address.
PASSWORDS = {
    "ada@example.com": "correct horse 1",
    "grace@example.com": "correct horse 2",
    "Edsger@Example.com": "correct horse 3",
}


def make_v1(connection: psycopg.Connection, *, runner_files: int = 0) -> None:
    """Make v1's tables in an empty database, with a few rows in each.

    Vectors have 1536 dimensions, some are NULL. The first ``runner_files`` files of the
    earlier SQL runner are applied as well, and what their functions wrote is there.
    """
    for name in ("tables.sql", "rows.sql", *RUNNER_FILES[:runner_files]):
        connection.execute((_SQL / name).read_bytes())
