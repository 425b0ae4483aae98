"""A real HTTP server that embeds as OpenAI's API does, with faults on demand."""

from __future__ import annotations

import hashlib
import json
import math
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-a-secret-that-nobody-sees"


@dataclass(frozen=True)
class Answer:
    """What the server does with one request; without arguments, it embeds."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    #: Sent instead of the embeddings.
    body: bytes | None = None
    #: Changes the embeddings before they are sent.
    edit: Callable[[list[dict[str, Any]]], object] | None = None
    #: Set by the test when the request may be answered.
    release: threading.Event | None = None
    #: Close the connection instead of answering.
    drop: bool = False


class EmbeddingServer(ThreadingHTTPServer):
    """Answers what `script` says, one entry a request, then whatever `default` says.

    A text for which `poisonous` is true has its request refused with 400.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: deque[Answer] = deque()
        self.default = Answer()
        self.poisonous: Callable[[str], bool] = lambda text: False
        self.dimensions = 8
        #: Of each request, in order of arrival.
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        #: How often each text was embedded in an answer that was sent.
        self.embedded: Counter[str] = Counter()
        #: Released by each request that has arrived.
        self.arrived = threading.Semaphore(0)
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up or was killed is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: EmbeddingServer

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            answer = server.script.popleft() if server.script else server.default
        server.arrived.release()
        if answer.release is not None:
            answer.release.wait(60)
        if answer.drop:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        texts = body["input"]
        if any(map(server.poisonous, texts)):
            answer = Answer(400, body=b'{"error": {"message": "this text cannot be embedded"}}')
        if answer.status == 200 and answer.body is None:
            data = [
                {"object": "embedding", "index": i, "embedding": vector(text, server.dimensions)}
                for i, text in enumerate(texts)
            ]
            if answer.edit is not None:
                answer.edit(data)
            self._send(answer, json.dumps({"object": "list", "data": data, "model": "m"}).encode())
            with server.lock:
                server.embedded.update(texts)
        else:
            self._send(answer, answer.body or b'{"error": {"message": "scripted"}}')

    def _send(self, answer: Answer, body: bytes) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """A test's output is its own."""


def vector(text: str, dimensions: int) -> list[float]:
    """A vector that is the text's alone, not of unit length."""
    seed = hashlib.sha256(text.encode()).digest() * (dimensions // 32 + 1)
    return [float(byte) - 127.5 for byte in seed[:dimensions]]


def unit(components: Sequence[float]) -> list[float]:
    length = math.sqrt(sum(component * component for component in components))
    return [component / length for component in components]


@contextmanager
def embedding_server() -> Iterator[EmbeddingServer]:
    """A server in a thread of this process, on a port of its own."""
    with EmbeddingServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
