"""A real PgBouncer in transaction mode, in front of the test server."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from cartrita.embedded.root import open_the_way_to, owner_of_server, process_options

_INI = """\
[databases]
* = host={host} port={port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users.txt
pool_mode = transaction
default_pool_size = {pool_size}
logfile = {folder}/log
ignore_startup_parameters = extra_float_digits
"""


@contextmanager
def pgbouncer(database: dict[str, Any], *, pool_size: int = 20) -> Iterator[dict[str, Any]]:
    """PgBouncer before the server of psycopg's parameters ``database``.

    Yields the parameters of the same database through it. Any database of the server can
    be reached so, as the same role. At most ``pool_size`` server connections each.
    """
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
    assert program is not None, "PgBouncer is missing; make packages installs it"
    with tempfile.TemporaryDirectory(prefix="cartrita-pgbouncer-") as name:
        folder = Path(name)
        port = _free_port()
        (folder / "pgbouncer.ini").write_text(
            _INI.format(**database, listen_port=port, folder=folder, pool_size=pool_size)
        )
        (folder / "users.txt").write_text('"{user}" ""\n'.format(**database))
        owner = owner_of_server(folder)  # not root, which PgBouncer refuses
        if owner is not None:
            shutil.chown(folder, *owner)
            open_the_way_to([folder])
        server = subprocess.Popen(
            [program, "--quiet", str(folder / "pgbouncer.ini")], **process_options(owner)
        )
        try:
            parameters = database | {"host": "127.0.0.1", "port": port}
            _wait_for(parameters, server)
            yield parameters
        finally:
            server.terminate()
            server.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_for(parameters: dict[str, Any], server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(**parameters).close()
        except psycopg.OperationalError:
            assert server.poll() is None, "PgBouncer ended"
            assert time.monotonic() < deadline, "PgBouncer does not answer"
        else:
            return
