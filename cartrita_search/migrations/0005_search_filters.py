"""Search: more filters, pages, explanations; storage by model."""

from django.db import migrations

from cartrita_search.migration_operations import RecordMigration


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0004_add_redis_hybrid_search")]

    operations = [
        RecordMigration("0005_search_filters", "Search: more filters, pages, explanations; storage by model"),
    ]
