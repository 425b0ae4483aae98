"""Vector indexes swapped under traffic."""

from django.db import migrations

from cartrita_search.migration_operations import RecordMigration


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0010_operator_actions")]

    operations = [
        RecordMigration("0011_concurrent_rebuild", "Vector indexes swapped under traffic"),
    ]
