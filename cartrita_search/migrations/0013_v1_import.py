"""How far the import of v1 rows has come."""

from django.db import migrations

from cartrita_search.migration_operations import RecordMigration


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0012_migration_guard")]

    operations = [
        RecordMigration("0013_v1_import", "How far the import of v1 rows has come"),
    ]
