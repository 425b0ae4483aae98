"""A store in a process of its own, and what was measured of it."""

from __future__ import annotations

import os
import pickle
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from django.conf import settings

from .store import Batch, Failure, Server

#: Rows of one call of `load`: as Python's floats a row takes 12 KB.
CHUNK = 5000

#: Nothing may be fetched or reported while measuring.
OFFLINE = {
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "LANGSMITH_TRACING": "false",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
}


class StoreFailed(Exception):
    """A package could not be imported, or its call raised. One line."""


class Contestant:
    """One store: its process, its figures, and its failure if there was one."""

    def __init__(self, name: str, module: str, python: Path, server: Server) -> None:
        self.name = name
        self.failure: str | None = None
        self.hybrids: dict[str, bool] = {}
        self.writes = self.writes_vectors = True
        #: nDCG@10 by kind of hybrid search and folder
        self.quality: dict[tuple[str, str], float] = {}
        #: of one kind of hybrid search by its name, or of vector search by ""
        self.seconds: dict[str, list[float]] = {}
        self.recall: float | None = None
        #: rows and seconds, by kind of writing
        self._written: dict[str, tuple[int, float]] = {}
        self._command = [str(python), "-m", "tests.benchmarks.peers.worker", module, *server]

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile()
        with self.surviving():
            try:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._log,
                    cwd=settings.BASE_DIR,
                    env=os.environ | OFFLINE,
                )
            except OSError as error:
                raise StoreFailed(f"{error.strerror}: {error.filename}") from error
            self.hybrids, self.writes, self.writes_vectors = self.call("facts")[1]
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_process"):
            # The end of its input ends the worker.
            self._process.communicate()
        self._log.close()

    @contextmanager
    def surviving(self) -> Iterator[None]:
        """A failure inside is kept, and the others go on."""
        try:
            yield
        except StoreFailed as failure:
            self.failure = str(failure)
            print(f"{self.name}: {failure}", flush=True)

    def call(self, method: str, *arguments: object) -> tuple[float, Any]:
        """(seconds, result); raises `StoreFailed`."""
        pipes = self._process.stdin, self._process.stdout
        assert pipes[0] is not None
        assert pipes[1] is not None
        try:
            pickle.dump((method, arguments), pipes[0])
            pipes[0].flush()
            answer = pickle.load(pipes[1])
        except (BrokenPipeError, EOFError):
            raise StoreFailed(f"{method}: the process ended: {self._last_words()}") from None
        if isinstance(answer, Failure):
            raise StoreFailed(answer.reason)
        seconds, result = answer
        return float(seconds), result

    def write(self, kind: str, method: str, batch: Batch) -> None:
        """Write the batch, and count it for that kind's `rate`."""
        seconds, _ = self.call(method, batch)
        rows, before = self._written.get(kind, (0, 0.0))
        self._written[kind] = (rows + len(batch.ids), before + seconds)

    def rate(self, kind: str) -> float | None:
        """Rows a second, None if none were written."""
        rows, seconds = self._written.get(kind, (0, 0.0))
        return rows / seconds if seconds else None

    def load(self, batch: Batch) -> None:
        """Write the batch, chunk by chunk, without counting it."""
        for start in range(0, len(batch.ids), CHUNK):
            self.call("load", batch.part(start, start + CHUNK))

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "no message")
