"""Rows a second of import_v1: knowledge_chunks with vectors of 1536 dimensions, and its memory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psycopg
from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.types.json import Jsonb

from .database import raw_connection
from .report import Measurement, show

ROWS = 200_000
#: Chunks of one document.
CHUNKS = 20
DIMENSIONS = 1536
WORDS = 100
#: Vectors lie around so many centres, as those of real texts do in topics.
CENTRES = 2000
#: Rows that are made at a time.
BATCH = 2000

_TABLES = """
    CREATE TABLE knowledge_documents (
        id integer PRIMARY KEY, user_id integer, title varchar(500), content text, metadata jsonb
    );
    CREATE TABLE knowledge_chunks (
        id integer PRIMARY KEY, document_id integer, user_id integer, chunk_text text,
        chunk_index integer, chunk_tokens integer, embedding vector(1536), metadata jsonb,
        created_at timestamptz DEFAULT now()
    );
    CREATE INDEX ON knowledge_chunks (document_id);
"""
_READERS = {"AccessShareLock"}


def run(connection: BaseDatabaseWrapper, rows: int | None = None) -> bool:
    """Import generated rows by the command as an operator runs it."""
    count = rows or ROWS
    with raw_connection(connection) as pg:
        pg.execute(_TABLES)
        # Building the vector index is `ingest`'s to measure: the plan is to have none.
        pg.execute("UPDATE search_settings SET exact_scan_max_rows = %s", [10 * count])
        try:
            _fill(pg, count)
            pg.execute("VACUUM (ANALYZE) knowledge_chunks, knowledge_documents")
            pg.execute("CHECKPOINT")
            return _measure(connection, pg, count)
        finally:
            pg.execute("UPDATE search_settings SET exact_scan_max_rows = DEFAULT")
            pg.execute("DROP TABLE knowledge_chunks, knowledge_documents")
            pg.execute("TRUNCATE search_documents, keyword_statistics, keyword_corpora CASCADE")


def _measure(connection: BaseDatabaseWrapper, pg: psycopg.Connection, count: int) -> bool:
    first, watched = _import(connection)
    again, watched_again = _import(connection)
    brought = {table["table"]: table["brought"] for table in first["tables"]}
    unchanged = {table["table"]: table["unchanged"] for table in again["tables"]}
    (stored,) = pg.execute("SELECT count(*) FROM embeddings").fetchone() or (0,)
    if brought["knowledge_chunks"] != count or unchanged["knowledge_chunks"] != count != stored:
        raise RuntimeError(f"not all came: {brought}, {unchanged}, {stored}")
    batches = watched.between("first_batch", "index")
    return show(
        [
            Measurement("rows/s", count / watched.seconds("first_batch", "index"), at_least=1500),
            Measurement("rows/s of processor time", count / batches[-1].processor),
            Measurement(
                "rows/s, unchanged", count / watched_again.seconds("first_batch", "index")
            ),
            Measurement("counting words, vacuum, s", watched.seconds("index", "record")),
            Measurement(
                "resident memory of the command, MB",
                max(look.resident for look in watched.looks),
                at_most=300,
            ),
            Measurement(
                "private memory of its backend, MB, batches",
                max(look.private for look in batches),
                at_most=300,
            ),
            Measurement("the same, counting words", max(look.private for look in watched.looks)),
            Measurement(
                "locks on v1's tables beyond a reader's", len(watched.locks - _READERS), at_most=0
            ),
        ]
    )


def _fill(pg: psycopg.Connection, count: int) -> None:
    random = np.random.default_rng(1)
    vocabulary = np.array(
        ["".join(random.choice(list("aeioubcdfglmnprst"), 4 + n % 7)) for n in range(30_000)]
    )
    # Zipf's law, as words of texts have it.
    weights = 1 / np.arange(1, len(vocabulary) + 1)
    weights /= weights.sum()
    centres = random.standard_normal((CENTRES, DIMENSIONS)).astype("f4")
    with pg.cursor().copy("COPY knowledge_documents FROM STDIN") as copy:
        for n in range(0, count, CHUNKS):
            copy.write_row((n // CHUNKS, n % 1000, f"Document {n // CHUNKS}", None, "{}"))
    columns = "id, document_id, user_id, chunk_text, chunk_index, embedding, metadata"
    statement = f"COPY knowledge_chunks ({columns}) FROM STDIN (FORMAT binary)"
    with pg.cursor().copy(statement.encode()) as copy:
        copy.set_types(["int4", "int4", "int4", "text", "int4", "vector", "jsonb"])
        for start in range(0, count, BATCH):
            size = min(BATCH, count - start)
            words = vocabulary[random.choice(len(vocabulary), (size, WORDS), p=weights)]
            vectors = centres[random.integers(CENTRES, size=size)] + random.standard_normal(
                (size, DIMENSIONS), dtype="f4"
            )
            for n in range(size):
                row = start + n
                copy.write_row(
                    (row, row // CHUNKS, row % 1000, " ".join(words[n]), row % CHUNKS, vectors[n],
                     Jsonb({"page": row % 7}))
                )  # fmt: skip


class Look(NamedTuple):
    """What an import and its backends had taken at one moment."""

    at: float
    #: Memory in MB: resident of the command, private of the largest backend.
    resident: float
    private: float
    #: Seconds of processor time of the backends.
    processor: float


class Watch(threading.Thread):
    """Looks at a running import, and knows when its steps began."""

    def __init__(self, connection: BaseDatabaseWrapper, process: subprocess.Popen[str]) -> None:
        super().__init__()
        self.connection = connection
        self.process = process
        self.ended = threading.Event()
        self.steps: dict[str, float] = {}
        self.looks: list[Look] = []
        self.locks: set[str] = set()

    def run(self) -> None:
        with raw_connection(self.connection) as pg:
            while not self.ended.wait(0.2):
                self._look(pg)

    def _look(self, pg: psycopg.Connection) -> None:
        # Those of Django's connection and of the lock, beside the benchmark's own.
        backends = [
            pid
            for (pid,) in pg.execute(
                "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
                " AND backend_start > (SELECT backend_start FROM pg_stat_activity"
                " WHERE pid = pg_backend_pid()) - interval '1 s' AND pid <> pg_backend_pid()"
            ).fetchall()
        ]
        self.looks.append(
            Look(
                time.perf_counter(),
                _kilobytes(self.process.pid, "status", "VmRSS") / 1024,
                max((_kilobytes(pid, "smaps_rollup", "Anonymous") / 1024 for pid in backends),
                    default=0.0),
                sum(map(_processor_seconds, backends)),
            )
        )  # fmt: skip
        self.locks |= {
            mode
            for (mode,) in pg.execute(
                "SELECT DISTINCT mode FROM pg_locks WHERE relation IN "
                "('knowledge_chunks'::regclass, 'knowledge_documents'::regclass)"
            ).fetchall()
        }

    def between(self, begin: str, end: str) -> list[Look]:
        """The looks from the first time that one step began to that of another."""
        return [look for look in self.looks if self.steps[begin] <= look.at <= self.steps[end]]

    def seconds(self, begin: str, end: str) -> float:
        """The time in between."""
        return self.steps[end] - self.steps[begin]


def _processor_seconds(pid: int) -> float:
    try:
        fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has just ended
        return 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _kilobytes(pid: int, file: str, name: str) -> int:
    try:
        text = (Path("/proc") / str(pid) / file).read_text()
    except OSError:  # it has just ended
        return 0
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _import(connection: BaseDatabaseWrapper) -> tuple[dict[str, Any], Watch]:
    params = connection.settings_dict
    environment = {
        "PATH": os.environ["PATH"],
        "ENV_FILE": os.devnull,
        "DEBUG": "true",
        "DATABASE_URL": f"postgres://{params['USER']}@:{params['PORT']}/{params['NAME']}"
        f"?host={params['HOST']}",
    }
    process = subprocess.Popen(
        [sys.executable, "manage.py", "import_v1", "--model", "bench", "--json"],
        cwd=settings.BASE_DIR,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watch = Watch(connection, process)
    watch.start()
    assert process.stderr is not None
    assert process.stdout is not None
    errors = []
    for line in process.stderr:
        if found := re.search(r"import_v1: (\w+) ", line):
            watch.steps.setdefault(found[1], time.perf_counter())
        errors.append(line)
    printed = process.stdout.read()
    watch.ended.set()
    watch.join()
    if process.wait():
        raise RuntimeError("".join(errors[-20:]))
    report: dict[str, Any] = json.loads(printed)
    return report, watch
