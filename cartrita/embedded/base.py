"""The database engine ``cartrita.embedded``: Django's PostgreSQL, started when needed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql import base, client
from psycopg import OperationalError

from .postgres import EmbeddedPostgres, client_program


class DatabaseClient(client.DatabaseClient):
    """``manage.py dbshell``, with the wheel's psql.

    Its ``executable_name`` has a folder, where a backup finds the wheel's pg_dump too.
    """

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        super().__init__(connection)
        self.executable_name = client_program("psql")

    def runshell(self, parameters: Iterable[str]) -> None:
        """Start the server if need be, then psql."""
        self.connection.ensure_connection()
        super().runshell(parameters)

    @classmethod
    def settings_to_cmd_args_env(
        cls, settings_dict: dict[str, Any], parameters: Iterable[str]
    ) -> tuple[list[str], dict[str, str] | None]:
        """As Django's, with the full path of psql."""
        (_, *args), env = super().settings_to_cmd_args_env(settings_dict, parameters)
        return [client_program("psql"), *args], env


class DatabaseWrapper(base.DatabaseWrapper):
    """Makes sure before each connection that the server runs and the database exists."""

    client_class = DatabaseClient

    def get_connection_params(self) -> dict[str, Any]:
        """Start the server if need be; HOST, PORT and USER are its own from then on."""
        server = EmbeddedPostgres.from_settings()
        if not server.seems_ready():
            server.start()
        self.settings_dict.update(server.connection_settings())
        return super().get_connection_params()

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Connect, and the first time create the database."""
        try:
            return super().get_new_connection(conn_params)
        except OperationalError:
            # libpq gives no SQLSTATE when connecting fails, so mend whatever
            # can be: the server gone just now, the database not there yet.
            server = EmbeddedPostgres.from_settings()
            server.start()
            server.create_database(conn_params["dbname"])
        return super().get_new_connection(conn_params)
