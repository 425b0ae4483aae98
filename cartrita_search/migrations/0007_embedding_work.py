"""Embedding work: how workers share it, and what could not be embedded."""

import django.db.models.functions.datetime
from django.db import migrations, models

from cartrita_search.migration_operations import RecordMigration, RunSQLFile


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0006_bulk_ingest")]

    operations = [
        RunSQLFile("embedding_work/embedding_refusals.v1.sql"),
        RunSQLFile("embedding_work/claim_embedding_work.v1.sql"),
        RunSQLFile("embedding_work/count_embedding_work.v1.sql"),
        migrations.CreateModel(
            name="EmbeddingRefusal",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False)),
                ("content_hash", models.TextField()),
                ("error_code", models.TextField()),
                ("message", models.TextField()),
                ("worker", models.TextField()),
                (
                    "refused_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
                ),
            ],
            options={
                "db_table": "embedding_refusals",
                "ordering": ("-id",),
                "managed": False,
            },
        ),
        RecordMigration(
            "0007_embedding_work",
            "Embedding work: how workers share it, and what could not be embedded",
        ),
    ]
