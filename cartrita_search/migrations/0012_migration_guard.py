"""Checksums of migrations, and their repair."""

from django.db import migrations

from cartrita_search.migration_operations import RecordMigration


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0011_concurrent_rebuild")]

    operations = [
        RecordMigration("0012_migration_guard", "Checksums of migrations, and their repair"),
    ]
