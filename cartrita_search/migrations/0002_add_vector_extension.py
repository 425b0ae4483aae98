"""pgvector, and one table for the vectors of every source and model."""

import uuid

import django.contrib.postgres.fields
import django.db.models.functions.datetime
import pgvector.django.vector
from django.db import migrations, models

from cartrita_search.migration_operations import RecordMigration, RunSQLFile


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0001_initial_baseline")]

    operations = [
        RunSQLFile("ingest/vector_extension.v1.sql", reverse=None),
        RunSQLFile("retrieval/search_settings.v1.sql"),
        RunSQLFile("retrieval/default_language.v1.sql"),
        RunSQLFile("retrieval/text_search_language.v1.sql"),
        RunSQLFile("ingest/embedding_models.v1.sql"),
        RunSQLFile("ingest/embedding_models_keep_dimensions.v1.sql"),
        RunSQLFile("ingest/search_documents.v1.sql"),
        RunSQLFile("ingest/document_content_hash.v1.sql"),
        RunSQLFile("ingest/search_documents_content_hash.v1.sql"),
        RunSQLFile("ingest/embeddings.v1.sql"),
        RunSQLFile("ingest/check_vector.v1.sql"),
        RunSQLFile("ingest/embeddings_follow_document.v1.sql"),
        RunSQLFile("ingest/search_documents_lead_embeddings.v1.sql"),
        RunSQLFile("ingest/register_embedding_model.v1.sql"),
        RunSQLFile("ingest/upsert_embedding.v1.sql"),
        RunSQLFile("ingest/upsert_embedding_uuid.v1.sql"),
        RunSQLFile("ingest/vector_search_stats.v1.sql"),
        RunSQLFile("vector_indexes/vector_order_expression.v1.sql"),
        RunSQLFile("vector_indexes/vector_candidates_sql.v1.sql"),
        RunSQLFile("vector_indexes/vector_candidate_count.v1.sql"),
        RunSQLFile("vector_indexes/begin_vector_scan.v1.sql"),
        RunSQLFile("vector_indexes/end_vector_scan.v1.sql"),
        RunSQLFile("retrieval/search_model.v1.sql"),
        RunSQLFile("retrieval/check_search_arguments.v1.sql"),
        RunSQLFile("retrieval/similarity_search.v1.sql"),
        migrations.CreateModel(
            name="SearchSettings",
            fields=[
                (
                    "id",
                    models.IntegerField(
                        default=1, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("default_language", models.TextField(default="english")),
                ("candidate_pool", models.IntegerField(default=100)),
                ("keyword_candidate_budget", models.IntegerField(default=5000)),
                ("keyword_max_terms", models.IntegerField(default=128)),
                ("rrf_k", models.IntegerField(default=60)),
                ("exact_scan_max_rows", models.IntegerField(default=1000)),
                ("index_memory_budget_mb", models.IntegerField(blank=True, null=True)),
                ("hnsw_m", models.IntegerField(default=16)),
                ("hnsw_ef_construction", models.IntegerField(default=64)),
            ],
            options={
                "verbose_name": "search settings",
                "verbose_name_plural": "search settings",
                "db_table": "search_settings",
                "managed": False,
            },
        ),
        migrations.CreateModel(
            name="EmbeddingModel",
            fields=[
                ("name", models.TextField(primary_key=True, serialize=False)),
                ("dimensions", models.IntegerField()),
                ("is_default", models.BooleanField(default=False)),
                ("index_method", models.TextField(default="exact")),
                ("index_storage", models.TextField(default="vector")),
                ("hnsw_m", models.IntegerField(blank=True, null=True)),
                ("hnsw_ef_construction", models.IntegerField(blank=True, null=True)),
                ("ivfflat_lists", models.IntegerField(blank=True, null=True)),
                ("ef_search", models.IntegerField(blank=True, null=True)),
                ("probes", models.IntegerField(blank=True, null=True)),
                ("target_recall", models.FloatField(default=0.95)),
                ("measured_recall", models.FloatField(blank=True, null=True)),
                ("indexed_rows", models.BigIntegerField(blank=True, null=True)),
                ("indexed_at", models.DateTimeField(blank=True, null=True)),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
                ),
            ],
            options={
                "db_table": "embedding_models",
                "ordering": ("name",),
                "managed": False,
            },
        ),
        migrations.CreateModel(
            name="SearchDocument",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=uuid.uuid4, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("source_table", models.TextField()),
                ("source_id", models.TextField()),
                ("chunk_index", models.IntegerField(default=0)),
                ("title", models.TextField(blank=True, default="")),
                ("content", models.TextField(blank=True, default="")),
                (
                    "tags",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.TextField(), blank=True, default=list, size=None
                    ),
                ),
                ("language", models.TextField(default="english")),
                ("metadata", models.JSONField(blank=True, default=dict)),
                (
                    "content_hash",
                    models.TextField(db_default=models.Value(None), editable=False),
                ),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
                ),
                (
                    "updated_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
                ),
            ],
            options={
                "db_table": "search_documents",
                "managed": False,
            },
        ),
        migrations.CreateModel(
            name="Embedding",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=uuid.uuid4, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("source_table", models.TextField()),
                ("source_id", models.TextField()),
                ("chunk_index", models.IntegerField(default=0)),
                ("embedding", pgvector.django.vector.VectorField()),
                (
                    "content_hash",
                    models.TextField(db_default=models.Value(None), editable=False),
                ),
                ("metadata", models.JSONField(blank=True, default=dict)),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
                ),
                (
                    "updated_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
                ),
            ],
            options={
                "db_table": "embeddings",
                "managed": False,
            },
        ),
        migrations.CreateModel(
            name="VectorSearchStats",
            fields=[
                ("id", models.TextField(primary_key=True, serialize=False)),
                ("source_table", models.TextField()),
                ("embedding_model", models.TextField(null=True)),
                ("dimensions", models.IntegerField(null=True)),
                ("documents", models.BigIntegerField()),
                ("embeddings", models.BigIntegerField()),
                ("missing", models.BigIntegerField()),
                ("stale", models.BigIntegerField()),
                ("oldest", models.DateTimeField(null=True)),
                ("newest", models.DateTimeField(null=True)),
            ],
            options={
                "verbose_name_plural": "vector search statistics",
                "db_table": "vector_search_stats",
                "ordering": ("source_table", "embedding_model"),
                "managed": False,
            },
        ),
        RecordMigration(
            "0002_add_vector_extension",
            "pgvector, and one table for the vectors of every source and model",
        ),
    ]
