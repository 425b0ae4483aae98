"""A Redis of a test's own, and a proxy before it that can fall silent."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from cartrita.embedded.redis import _server_program


def caches_at(url: str, configured: Mapping[str, Any]) -> dict[str, Any]:
    """``CACHES`` as configured, but at that server."""
    return {
        alias: cache
        | {
            "LOCATION": url,
            "OPTIONS": {
                name: value
                for name, value in cache["OPTIONS"].items()
                if name != "CONNECTION_POOL_CLASS"
            },
        }
        for alias, cache in configured.items()
    }


class RedisServer:
    """A real server on a TCP port of its own, which it keeps when it is started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._options = options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For ``CACHES``."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *options: str) -> None:
        """Start, and return when it answers."""
        command = [_server_program(), "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--dir", str(self._folder), "--save", "", *self._options, *options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        with self.client() as client, suppress(Exception):
            client.ping()

    def client(self, password: str | None = None) -> Redis:
        """A client without a breaker, that waits for a server which is just starting."""
        retry = Retry(ConstantBackoff(0.05), 200)
        return Redis(port=self.port, password=password, retry=retry)

    def kill(self) -> None:
        """As the kernel does it for want of memory: connections break, the data are gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Proxy:
    """Passes a server's TCP connections on; while silent it accepts, and answers nothing."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._speaking = threading.Event()
        self._speaking.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def silence(self) -> None:
        """From now on no byte comes back, over old connections and new ones."""
        self._speaking.clear()

    def speak(self) -> None:
        """Pass on again, also what was held back."""
        self._speaking.set()

    def close(self) -> None:
        self.speak()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    client.close()
                    continue
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._speaking.wait()
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    """A running server with nothing in it."""
    with TemporaryDirectory(prefix="cartrita-redis-") as folder:
        server = RedisServer(Path(folder), *options)
        server.start()
        try:
            yield server
        finally:
            server.kill()


@contextmanager
def redis_behind_proxy() -> Iterator[tuple[RedisServer, Proxy]]:
    """A running server, and the proxy to reach it by."""
    with ExitStack() as stack:
        server = stack.enter_context(redis_server())
        proxy = Proxy(server.port)
        stack.callback(proxy.close)
        yield server, proxy
