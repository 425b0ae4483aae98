"""Redis servers and sentinels of a test's own, which it may break, and how they are used."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from django.core.cache import cache
from environ import Env
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cartrita.embedded.redis import _server_program

#: Within which a server of a test takes another's data, or replaces another.
DEADLINE_SECONDS = 60.0


class RedisServer:
    """A ``redis-server`` with these options, or a ``redis-sentinel`` with this configuration.

    On a TCP port of its own, which it keeps when it is started again; ``{port}`` in either
    is that port.
    """

    def __init__(self, folder: Path, *options: str, sentinel: str = "") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        if sentinel:
            file = folder / f"sentinel-{self.port}.conf"
            file.write_text(sentinel.format(port=self.port))
            self._command = ["redis-sentinel", str(file)]
        else:
            given = [option.format(port=self.port) for option in options]
            # Before those that are given, which may say otherwise.
            usual = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
            self._command = [_server_program(), "--dir", str(folder), *usual, *given]
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """For ``REDIS_URL`` and ``CACHES``."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start, and return when it accepts connections."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        log = self._process.stdout
        assert log is not None
        said = ""
        for line in log:
            said += line
            if "Ready to accept" in line or "Sentinel ID" in line:
                # What it says later is nobody's business, and must not fill the pipe.
                threading.Thread(target=_read_out, args=(log,), daemon=True).start()
                return
        raise AssertionError(said)

    def kill(self) -> None:
        """As the kernel does it for want of memory: connections break, what is unsaved is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def client(self, **options: Any) -> Redis:
        """A client without a breaker."""
        return Redis(port=self.port, retry=Retry(NoBackoff(), 0), **options)


def _read_out(log: Any) -> None:
    with log:
        for _ in log:
            pass


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


# --- Running ones -----------------------------------------------------------


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
def redis_behind_proxy(*options: str) -> Iterator[tuple[RedisServer, Proxy]]:
    """A running server, and the proxy to reach it by."""
    with ExitStack() as stack:
        server = stack.enter_context(redis_server(*options))
        proxy = Proxy(server.port)
        stack.callback(proxy.close)
        yield server, proxy


StartRedis = Callable[..., RedisServer]


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[StartRedis]:
    """Servers of a test's own, killed when it ends; arguments as `RedisServer` takes them."""
    with ExitStack() as stack:

        def _start(*options: str, sentinel: str = "") -> RedisServer:
            server = RedisServer(tmp_path, *options, sentinel=sentinel)
            stack.callback(server.kill)
            server.start()
            return server

        yield _start


# --- Using them -------------------------------------------------------------


def caches_at(url: str, configured: Mapping[str, Any]) -> dict[str, Any]:
    """``CACHES`` as configured, but at that server."""
    return {
        alias: given
        | {
            "LOCATION": url,
            "OPTIONS": {
                name: value
                for name, value in given["OPTIONS"].items()
                if name != "CONNECTION_POOL_CLASS"
            },
        }
        for alias, given in configured.items()
    }


UseRedis = Callable[[str], None]


@pytest.fixture
def use_redis(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[UseRedis]:
    """Let this process use the Redis of a URL, as the environment of a site would."""

    def _use(url: str) -> None:
        environment = {"ENV_FILE": os.devnull, "DEBUG": "true", "REDIS_URL": url}
        monkeypatch.setattr(Env, "ENVIRON", environment)
        loaded = runpy.run_path(str(settings.BASE_DIR / "cartrita" / "settings.py"))
        settings.CACHES = loaded["CACHES"]

    yield _use
    cache.client.do_close_clients()  # type: ignore[attr-defined]


def until(condition: Callable[[], object]) -> None:
    """Return when it is so; fail at the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
