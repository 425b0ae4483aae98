"""Bulk ingest: one merge a batch, checks once a statement."""

from django.db import migrations

from cartrita_search.migration_operations import RecordMigration


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0005_search_filters")]

    operations = [
        RecordMigration(
            "0006_bulk_ingest", "Bulk ingest: one merge a batch, checks once a statement"
        ),
    ]
