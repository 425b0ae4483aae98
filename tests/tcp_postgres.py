"""A PostgreSQL server as others have it: over TCP, with passwords, with and without TLS.

The embedded server is built without TLS; a proxy ends it in front, as a managed service's
gateway does. Its client programs are as well: `tls_programs` are the same with psycopg's
libpq, which speaks it.
"""

from __future__ import annotations

import shlex
import socket
import socketserver
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import psycopg_binary
import trustme
from psycopg import sql

from cartrita.embedded.postgres import EmbeddedPostgres, client_program

ROLE = "cartrita"
#: Nothing that a shell or a URL would take as it is.
PASSWORD = "p@ss'w$rd %2F"
DATABASE = "cartrita v2"


@dataclass(frozen=True)
class TcpPostgres:
    """What a Secret would hold of it, and a superuser's way in."""

    port: str
    #: Where TLS is spoken, and nothing else.
    tls_port: str
    server: EmbeddedPostgres

    def connect(self, dbname: str = DATABASE) -> psycopg.Connection:
        """As a superuser, by the socket."""
        return self.server.connect(dbname)

    def connect_as_owner(self, dbname: str = DATABASE) -> psycopg.Connection:
        """As the role that a Secret names."""
        return psycopg.connect(
            host="localhost",
            port=self.port,
            user=ROLE,
            password=PASSWORD,
            dbname=dbname,
            autocommit=True,
        )

    def create_database(self, name: str) -> None:
        """A database of the role's, with pgvector."""
        with self.connect("postgres") as superuser:
            superuser.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(
                    sql.Identifier(name), sql.Identifier(ROLE)
                )
            )
        with self.connect(name) as database:
            database.execute("CREATE EXTENSION vector")

    @property
    def environment(self) -> dict[str, str]:
        return {
            "POSTGRES_HOST": "localhost",
            "POSTGRES_PORT": self.port,
            "POSTGRES_USER": ROLE,
            "POSTGRES_PASSWORD": PASSWORD,
            "POSTGRES_DB": DATABASE,
        }


def tls_programs(folder: Path) -> Path:
    """``folder`` with a pg_dump and a pg_restore that speak TLS."""
    bundled = Path(psycopg_binary.__file__).parent.with_suffix(".libs")
    (libpq,) = bundled.glob("libpq-*.so.*")
    for name in ("pg_dump", "pg_restore"):
        program = folder / name
        command = f'exec {shlex.quote(client_program(name))} "$@"'
        program.write_text(f"#!/bin/sh\nLD_PRELOAD={shlex.quote(str(libpq))} {command}\n")
        program.chmod(0o755)
    return folder


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


class _TlsGateway(socketserver.ThreadingTCPServer):
    """Speaks TLS to clients, by PostgreSQL's negotiation, and plain to the server."""

    daemon_threads = True

    def __init__(self, port: str) -> None:
        self.backend = ("127.0.0.1", int(port))
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("localhost").configure_cert(self.context)
        super().__init__(("127.0.0.1", 0), _TlsClient)


class _TlsClient(socketserver.BaseRequestHandler):
    server: _TlsGateway

    def handle(self) -> None:
        # SSLRequest: a length of 8, and a number that is no protocol's version.
        if self.request.recv(8) != struct.pack("!II", 8, 80877103):
            return  # whoever would go on without TLS is turned away
        self.request.sendall(b"S")
        with (
            self.server.context.wrap_socket(self.request, server_side=True) as client,
            socket.create_connection(self.server.backend) as backend,
        ):
            back = threading.Thread(target=_copy, args=(backend, client), daemon=True)
            back.start()
            _copy(client, backend)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:  # one side is gone, and the other learns of it
        pass


@contextmanager
def tcp_postgres(folder: Path) -> Iterator[TcpPostgres]:
    """A server with one role that may make databases, and its database with pgvector."""
    port = free_port()
    server = EmbeddedPostgres(
        folder, {"listen_addresses": "localhost", "port": port, "fsync": "off"}
    )
    server.start()
    gateway = _TlsGateway(port)
    threading.Thread(target=gateway.serve_forever, daemon=True).start()
    try:
        with server.connect() as superuser:
            superuser.execute(
                sql.SQL("CREATE ROLE {} LOGIN CREATEDB PASSWORD {}").format(
                    sql.Identifier(ROLE), PASSWORD
                )
            )
            (server.folder / "pg_hba.conf").write_text(
                "local all postgres trust\nhost all all localhost scram-sha-256\n"
            )
            superuser.execute("SELECT pg_reload_conf()")
        started = TcpPostgres(port, str(gateway.server_address[1]), server)
        started.create_database(DATABASE)
        yield started
    finally:
        gateway.shutdown()
        gateway.server_close()
        server.stop()
