"""BM25 in plain PostgreSQL, hybrid search, weights by person, and what Redis needs."""

import uuid

import django.db.models.functions.datetime
from django.db import migrations, models

from cartrita_search.migration_operations import RecordMigration, RunSQLFile


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0003_optimize_vector_indexes")]

    operations = [
        RunSQLFile("keywords/keyword_corpora.v1.sql"),
        RunSQLFile("keywords/keyword_statistics.v1.sql"),
        RunSQLFile("keywords/lexeme_index.v1.sql"),
        RunSQLFile("keywords/quote_lexeme.v1.sql"),
        RunSQLFile("keywords/keyword_text.v1.sql"),
        RunSQLFile("keywords/keyword_vector.v1.sql"),
        RunSQLFile("keywords/search_documents_keyword_columns.v1.sql"),
        RunSQLFile("keywords/search_documents_keywords.v1.sql"),
        RunSQLFile("keywords/keyword_query.v1.sql"),
        RunSQLFile("keywords/refresh_keyword_statistics.v1.sql"),
        RunSQLFile("retrieval/retrieval_configs.v1.sql"),
        RunSQLFile("retrieval/hybrid_search.v1.sql"),
        RunSQLFile("retrieval/hybrid_search_for_user.v1.sql"),
        RunSQLFile("metrics/search_performance_metrics.v1.sql"),
        RunSQLFile("cache/cache_invalidation_log.v1.sql"),
        RunSQLFile("sessions/redis_sessions.v1.sql"),
        migrations.CreateModel(
            name="KeywordCorpus",
            fields=[
                ("language", models.TextField(primary_key=True, serialize=False)),
                ("documents", models.BigIntegerField()),
                ("average_length", models.FloatField()),
                (
                    "refreshed_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
                ),
            ],
            options={
                "verbose_name_plural": "keyword corpora",
                "db_table": "keyword_corpora",
                "managed": False,
            },
        ),
        migrations.CreateModel(
            name="KeywordStatistic",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "language",
                        "lexeme",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("language", models.TextField()),
                ("lexeme", models.TextField()),
                ("document_frequency", models.BigIntegerField()),
            ],
            options={
                "db_table": "keyword_statistics",
                "managed": False,
            },
        ),
        migrations.CreateModel(
            name="RetrievalConfig",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False)),
                ("config_name", models.TextField(default="default")),
                ("vector_weight", models.FloatField(default=0.7)),
                ("keyword_weight", models.FloatField(default=0.3)),
                ("rerank_enabled", models.BooleanField(default=False)),
                ("max_results", models.IntegerField(default=10)),
                ("similarity_threshold", models.FloatField(default=0.0)),
                ("is_active", models.BooleanField(default=True)),
                (
                    "created_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), editable=False
                    ),
                ),
                ("updated_at", models.DateTimeField(auto_now=True)),
            ],
            options={
                "db_table": "retrieval_configs",
                "managed": False,
            },
        ),
        migrations.CreateModel(
            name="SearchPerformanceMetric",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False)),
                ("search_type", models.TextField()),
                ("query_text", models.TextField(null=True)),
                ("query_hash", models.TextField(null=True)),
                ("result_count", models.IntegerField()),
                ("execution_time_ms", models.FloatField()),
                ("cache_hit", models.BooleanField(default=False)),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
                ),
                ("metadata", models.JSONField(default=dict)),
            ],
            options={
                "db_table": "search_performance_metrics",
                "ordering": ("-id",),
                "managed": False,
            },
        ),
        migrations.CreateModel(
            name="CacheInvalidation",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False)),
                ("cache_key", models.TextField(null=True)),
                ("cache_namespace", models.TextField(null=True)),
                ("invalidation_reason", models.TextField()),
                ("invalidated_by", models.TextField()),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
                ),
                ("metadata", models.JSONField(default=dict)),
            ],
            options={
                "db_table": "cache_invalidation_log",
                "ordering": ("-id",),
                "managed": False,
            },
        ),
        migrations.CreateModel(
            name="RedisSession",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=uuid.uuid4, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("session_key_hash", models.TextField()),
                ("data_type", models.TextField(default="session")),
                ("ttl_seconds", models.IntegerField()),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
                ),
                ("expires_at", models.DateTimeField()),
                ("metadata", models.JSONField(default=dict)),
            ],
            options={
                "db_table": "redis_sessions",
                "ordering": ("-created_at",),
                "managed": False,
            },
        ),
        RecordMigration(
            "0004_add_redis_hybrid_search",
            "BM25 in plain PostgreSQL, hybrid search, weights by person, and what Redis needs",
        ),
    ]
