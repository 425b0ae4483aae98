"""Sessions in Redis, and their revocation."""

from django.db import migrations

from cartrita_search.migration_operations import RecordMigration


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0015_result_cache")]

    operations = [
        RecordMigration("0016_session_registry", "Sessions in Redis, and their revocation"),
    ]
