"""Embedding work: what could not be embedded, and why."""

from django.db import migrations

from cartrita_search.migration_operations import RecordMigration


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0006_bulk_ingest")]

    operations = [
        RecordMigration(
            "0007_embedding_work", "Embedding work: what could not be embedded, and why"
        ),
    ]
