"""Management commands in the test's own process, on a database of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

from django.core.management import call_command
from django.db import DEFAULT_DB_ALIAS, connections


@contextmanager
def database_of(parameters: dict[str, Any]) -> Iterator[None]:
    """Django's default database is that of psycopg's ``parameters`` within the block."""
    before = connections[DEFAULT_DB_ALIAS]
    other = before.copy()
    other.settings_dict["NAME"] = parameters["dbname"]
    connections[DEFAULT_DB_ALIAS] = other
    try:
        yield
    finally:
        other.close()
        connections[DEFAULT_DB_ALIAS] = before


def run(parameters: dict[str, Any], *arguments: str, **options: Any) -> str:
    """What the command says. A tenth of the time that a process of its own takes."""
    said = StringIO()
    with database_of(parameters):
        call_command(*arguments, stdout=said, stderr=said, no_color=True, **options)
    return said.getvalue()
