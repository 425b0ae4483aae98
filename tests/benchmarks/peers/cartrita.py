"""Ours, through the public Python API only."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar

import django
from django.apps import apps
from django.conf import settings

from .store import DIMENSIONS, EF_SEARCH, HNSW_EF_CONSTRUCTION, HNSW_M, Batch, Server, Store

if TYPE_CHECKING:
    from cartrita_search.ingest import IngestReport

SOURCE = "documents"
MODEL = "all-MiniLM-L6-v2"


def all_stored(report: IngestReport) -> None:
    """Raise where a row was refused: the rate would be that of fewer rows."""
    if report.refused:
        raise RuntimeError(f"{report.refused} rows were refused, {report.refusals[0]} first")


class Cartrita(Store):
    """A Django project's own process, whose default database is the server's."""

    hybrids: ClassVar = {"search()": True}
    writes_vectors = True

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        if not apps.ready:
            os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
            settings.DEBUG = False  # or Django would keep a log of every query
            settings.DATABASES = {
                "default": settings.DATABASES["default"]
                | {
                    "ENGINE": "django.db.backends.postgresql",
                    "HOST": server.host,
                    "PORT": server.port,
                    "USER": server.user,
                    "NAME": server.dbname,
                    # As with PREPARE_STATEMENTS: the baseline is prepared too.
                    "OPTIONS": {"prepare_threshold": 5},
                }
            }
            django.setup()
        from django.db import connection

        self.connection = connection

    def _execute(self, statement: str, parameters: list[Any] | None = None) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(statement, parameters)

    def create(self) -> None:
        self._execute("TRUNCATE search_documents, keyword_statistics, keyword_corpora CASCADE")
        # Without rows every model's plan is the exact scan: this drops their indexes.
        self._execute("SELECT rebuild_vector_indexes()")
        self._execute("SELECT register_embedding_model(%s, %s)", [MODEL, DIMENSIONS])
        self._execute(
            "UPDATE search_settings SET hnsw_m = %s, hnsw_ef_construction = %s",
            [HNSW_M, HNSW_EF_CONSTRUCTION],
        )

    def prepare(self, batch: Batch) -> Any:
        from cartrita_search.ingest import Document

        return [
            Document(SOURCE, key, title, text, vector)
            for key, title, text, vector in zip(
                batch.ids, batch.titles, batch.texts, batch.vectors, strict=True
            )
        ]

    def load(self, records: Any) -> None:
        from cartrita_search.ingest import upsert_documents

        # Kept: for every store, building the index is a step of its own.
        all_stored(upsert_documents(records, model=MODEL, index="keep"))

    def prepare_vectors(self, batch: Batch) -> Any:
        from cartrita_search.ingest import Document, DocumentVector, upsert_documents

        rows = list(zip(batch.ids, batch.titles, batch.texts, strict=True))
        all_stored(
            upsert_documents(Document(SOURCE, key, title, text) for key, title, text in rows)
        )
        return [
            DocumentVector(SOURCE, key, vector)
            for key, vector in zip(batch.ids, batch.vectors, strict=True)
        ]

    def load_vectors(self, records: Any) -> None:
        from cartrita_search.ingest import upsert_embeddings

        all_stored(upsert_embeddings(records, model=MODEL, index="keep"))

    def build_index(self) -> None:
        self._execute("SELECT rebuild_vector_indexes()")
        # Tuned to the recall wanted, it might be another one than the others have.
        self._execute("UPDATE embedding_models SET ef_search = %s", [EF_SEARCH])

    def vector(self, query: Any, k: int) -> list[str]:
        from cartrita_search import retrieval

        return [h.source_id for h in retrieval.similarity_search(query, model=MODEL, limit=k)]

    def hybrid(self, name: str, text: str, query: Any, k: int) -> list[str]:
        from cartrita_search import retrieval

        found = retrieval.search(text, vector=query, model=MODEL, limit=k)
        return [hit.source_id for hit in found]

    def drop(self) -> None:
        self.create()


STORE = Cartrita
