"""Vector indexes: how each stands, and when a rebuild is due."""

from django.db import migrations

from cartrita_search.migration_operations import RecordMigration, RunSQLFile


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0010_operator_actions")]

    operations = [
        RunSQLFile("vector_indexes/vector_index_facts.v1.sql"),
        RunSQLFile("vector_indexes/vector_index_needs.v1.sql"),
        RunSQLFile("vector_indexes/vector_index_status.v1.sql"),
        # Last, for it keeps readers out until the commit.
        RunSQLFile("vector_indexes/search_settings_rebuild.v1.sql"),
        RecordMigration(
            "0011_concurrent_rebuild", "Vector indexes: how each stands, and when a rebuild is due"
        ),
    ]
