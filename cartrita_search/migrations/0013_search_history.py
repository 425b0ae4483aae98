"""The records of searches and of invalidations: their old rows are cheap to delete."""

from django.db import migrations

from cartrita_search.migration_operations import RecordMigration, RunSQLFile


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0012_migration_guard")]

    operations = [
        RunSQLFile("metrics/search_performance_metrics_retention.v1.sql"),
        RunSQLFile("cache/cache_invalidation_log_retention.v1.sql"),
        RecordMigration(
            "0013_search_history", "The records of searches and of invalidations: cheap to prune"
        ),
    ]
