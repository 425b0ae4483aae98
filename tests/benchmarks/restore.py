"""A whole restore, checked, counted, analysed and swapped in, beside pg_restore alone."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psycopg
from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper

from cartrita.embedded.postgres import client_program
from cartrita_search.ingest import Document, finish_load, upsert_documents
from cartrita_search.ops.backup import backup_database
from cartrita_search.ops.restore import plan_restore, restore_backup
from tests.collections_data import MODEL, document_ids, document_vectors, documents

from .database import raw_connection, truncate
from .report import Measurement, show

#: Documents with vectors, in an HNSW index, and rows of a table of v1 beside.
DOCUMENTS = 30_000
V1_ROWS = 200_000
ROUNDS = 3
JOBS = 2


def run(connection: BaseDatabaseWrapper) -> bool:
    """Both in turn, a few times, from one backup into databases of one server."""
    with raw_connection(connection) as pg:
        _fill(pg)
    name = connection.settings_dict["NAME"]
    server = {
        "host": connection.settings_dict["HOST"],
        "port": connection.settings_dict["PORT"],
        "user": connection.settings_dict["USER"],
    }
    with tempfile.TemporaryDirectory(prefix="cartrita-bench-") as folder:
        path = Path(folder) / "a.dump"
        backup = backup_database(path)
        plan_seconds: list[float] = []
        whole: list[float] = []
        alone: list[float] = []
        for _ in range(ROUNDS):
            with psycopg.connect(**server, dbname="postgres", autocommit=True) as maintenance:
                maintenance.execute("DROP DATABASE IF EXISTS alone WITH (FORCE)")
                maintenance.execute("CREATE DATABASE alone TEMPLATE template0")
                alone.append(_seconds(lambda: _pg_restore(server, path)))
                maintenance.execute("DROP DATABASE alone WITH (FORCE)")
            started = time.perf_counter()
            plan = plan_restore(path, jobs=JOBS)
            plan_seconds.append(time.perf_counter() - started)
            report = restore_backup(plan)
            whole.append(time.perf_counter() - started)
            with psycopg.connect(**server, dbname="postgres", autocommit=True) as maintenance:
                maintenance.execute(report.drop_kept.encode() if report.drop_kept else b"")
            if (report.database, report.rows) != (name, backup.rows):
                raise RuntimeError(f"not all was restored: {report}")
    with raw_connection(connection) as pg:
        pg.execute("DROP TABLE v1_rows")
        truncate(pg)
    return show(
        [
            Measurement("backup, s (read back in full)", backup.seconds),
            Measurement("backup, MB", backup.bytes / 1e6),
            Measurement(f"pg_restore --jobs={JOBS} alone, s", float(np.median(alone))),
            Measurement("restore_backup, s", float(np.median(whole))),
            Measurement("of that the check of the file, s", float(np.median(plan_seconds))),
            Measurement(
                "restore_backup / pg_restore alone",
                float(np.median(np.array(whole) / np.array(alone))),
                at_most=1.25,
            ),
        ]
    )


def _fill(pg: psycopg.Connection) -> None:
    truncate(pg)
    vectors = dict(zip(document_ids("wordnet"), document_vectors("wordnet"), strict=True))
    upsert_documents(
        (
            Document("wordnet", each.id, each.title, each.text, vectors[each.id])
            for _, each in zip(range(DOCUMENTS), documents("wordnet"), strict=False)
        ),
        model=MODEL,
    )
    finish_load(MODEL)
    pg.execute("DROP TABLE IF EXISTS v1_rows")
    pg.execute("CREATE TABLE v1_rows (id integer PRIMARY KEY, note text)")
    pg.execute(
        "INSERT INTO v1_rows SELECT n, repeat(md5(n::text), 10) FROM generate_series(1, %s) AS n",
        [V1_ROWS],
    )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _pg_restore(server: dict[str, str], path: Path) -> None:
    subprocess.run(
        [
            client_program("pg_restore"),
            f"--host={server['host']}",
            f"--port={server['port']}",
            f"--username={server['user']}",
            "--dbname=alone",
            f"--jobs={JOBS}",
            "--exit-on-error",
            str(path),
        ],
        check=True,
        cwd=settings.BASE_DIR,
    )
