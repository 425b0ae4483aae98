"""Sources kept in step: how far each has come."""

from django.db import migrations

from cartrita_search.migration_operations import RecordMigration


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0007_embedding_work")]

    operations = [
        RecordMigration("0008_source_sync", "Sources kept in step: how far each has come"),
    ]
