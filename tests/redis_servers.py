"""Redis servers and sentinels of a test's own, which it may kill."""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache
from environ import Env
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

#: Within which a server of a test answers, takes another's data, or replaces another.
DEADLINE_SECONDS = 60.0


class RedisServer:
    """A ``redis-server`` with these options, or a ``redis-sentinel`` with this configuration."""

    def __init__(self, folder: Path, *options: str, sentinel: str = "") -> None:
        self.folder = folder
        self.port = _free_port()
        self.options = ["--dir", str(folder), *options]
        self.program = "redis-server"
        if sentinel:
            file = folder / f"sentinel-{self.port}.conf"
            file.write_text(sentinel.format(port=self.port))
            self.program, self.options = "redis-sentinel", [str(file)]
        elif "--tls-port" not in options:
            self.options += ["--port", str(self.port), "--save", ""]
        self.options = [option.format(port=self.port) for option in self.options]

    def start(self) -> None:
        """Start, and return when it accepts connections."""
        self.process = subprocess.Popen(
            [self.program, *self.options], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        said = ""
        for line in self.process.stdout:
            said += line
            if "Ready to accept" in line or "Sentinel ID" in line:
                return
        raise AssertionError(said)

    def hang(self) -> None:
        """Let it accept connections, and answer nothing, until `go_on`."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def client(self, **options: Any) -> Redis:
        return Redis(port=self.port, retry=Retry(NoBackoff(), 0), decode_responses=True, **options)


StartRedis = Callable[..., RedisServer]
UseRedis = Callable[[str], None]


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[StartRedis]:
    """Servers of a test's own, killed when it ends; arguments as `RedisServer` takes them."""
    with ExitStack() as stack:

        def _start(*options: str, sentinel: str = "") -> RedisServer:
            server = RedisServer(tmp_path, *options, sentinel=sentinel)
            server.start()
            stack.callback(server.kill)
            return server

        yield _start


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


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
