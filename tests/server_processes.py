"""Killing and starting the server of a `Replica`."""

from __future__ import annotations

import subprocess
from pathlib import Path

from cartrita.embedded.postgres import client_program
from cartrita.embedded.root import owner_of_server, process_options

from .replica import Replica


def kill(server: Replica) -> None:
    """Stop it as a crash would: sessions end at once, and nothing is written any more."""
    _pg_ctl(server, "stop", "--mode=immediate")


def start(server: Replica) -> None:
    """Start it anew; it recovers, and answers when this returns."""
    folder = server.parameters["host"]
    _pg_ctl(server, "start", f"--log={folder}/log", f"--options=-k {folder}")


def _pg_ctl(server: Replica, *arguments: str) -> None:
    data = Path(server.parameters["host"]) / "data"
    subprocess.run(
        [client_program("pg_ctl"), *arguments, "--wait", f"--pgdata={data}"],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd="/",
        **process_options(owner_of_server(data)),
    )
