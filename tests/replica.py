"""A physical replica of this run's PostgreSQL, which a test can let lag behind."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg

from cartrita.embedded import root
from cartrita.embedded.postgres import PORT, client_program


class Replica:
    """A hot standby that streams from the primary. ``parameters`` are psycopg's."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self.parameters = dict(parameters)

    def connect(self) -> psycopg.Connection:
        """An autocommit connection to the replica."""
        return psycopg.connect(**self.parameters, autocommit=True)

    def pause(self) -> None:
        """Lag: what the primary commits from now on is not seen here."""
        with self.connect() as connection:
            connection.execute("SELECT pg_wal_replay_pause()")
            _wait_until(
                connection, "SELECT pg_get_wal_replay_pause_state() = 'paused'", (), "pause"
            )

    def resume(self) -> None:
        """Go on replaying."""
        with self.connect() as connection:
            connection.execute("SELECT pg_wal_replay_resume()")

    def catch_up(self, primary: psycopg.Connection) -> None:
        """Return when all that the primary has committed so far is seen here."""
        # What is committed asynchronously is not written yet: this write is flushed.
        primary.execute("SELECT pg_switch_wal()")
        (position,) = primary.execute("SELECT pg_current_wal_lsn()").fetchone() or (None,)
        with self.connect() as connection:
            _wait_until(
                connection,
                "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn",
                (position,),
                "catch up",
            )


@contextmanager
def replica_of(primary: Mapping[str, Any]) -> Iterator[Replica]:
    """A running replica of the server with these connection parameters (host, port, user)."""
    with TemporaryDirectory(prefix="cartrita-replica-") as name:
        folder, sockets = Path(name) / "data", Path(name)
        owner = root.owner_of_server(Path(name))
        if owner is not None:
            os.chown(name, *owner)
            root.open_the_way_to([sockets])
        process = root.process_options(owner)
        _run(
            [
                *(client_program("pg_basebackup"), "--write-recovery-conf", "--checkpoint=fast"),
                *("--wal-method=stream", "-h", str(primary["host"]), "-p", str(primary["port"])),
                *("-U", str(primary["user"]), "-D", str(folder), "--no-sync"),
            ],
            process,
        )
        _run(
            [
                *(client_program("pg_ctl"), "start", "--wait", f"--pgdata={folder}"),
                *(
                    f"--log={sockets / 'log'}",
                    f"--options=-k {sockets} -c hot_standby_feedback=on",
                ),
            ],
            process,
        )
        try:
            yield Replica({**primary, "host": name, "port": PORT})
        finally:
            stop = [client_program("pg_ctl"), "stop", f"--pgdata={folder}", "--mode=immediate"]
            _run(stop, process)


def _run(command: list[str], process: Mapping[str, Any]) -> None:
    # Not captured through pipes, which the server would keep open.
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", **process)


def _wait_until(
    connection: psycopg.Connection, question: str, parameters: tuple[Any, ...], what: str
) -> None:
    deadline = time.monotonic() + 60
    while connection.execute(question, parameters).fetchone() != (True,):
        assert time.monotonic() < deadline, f"the replica did not {what}"
