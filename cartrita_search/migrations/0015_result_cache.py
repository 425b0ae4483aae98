"""Generations of cached search results."""

from django.db import migrations

from cartrita_search.migration_operations import RecordMigration


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0014_search_history")]

    operations = [
        RecordMigration("0015_result_cache", "Generations of cached search results"),
    ]
