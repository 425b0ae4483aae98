"""The record of searches, cheap to prune."""

from django.db import migrations

from cartrita_search.migration_operations import RecordMigration


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0013_v1_import")]

    operations = [
        RecordMigration("0014_metrics_by_month", "The record of searches, cheap to prune"),
    ]
