"""Vector indexes swapped under traffic: measured before the swap, and their status."""

from django.db import migrations

from cartrita_search.migration_operations import RecordMigration, ReplaceSQLFile, RunSQLFile


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0010_operator_actions")]

    operations = [
        ReplaceSQLFile("vector_indexes/vector_recall_sample.v2.sql"),
        ReplaceSQLFile("vector_indexes/tune_vector_index.v2.sql"),
        RunSQLFile("vector_indexes/swap_vector_index.v1.sql"),
        ReplaceSQLFile("vector_indexes/rebuild_vector_indexes.v3.sql"),
        RunSQLFile("vector_indexes/vector_index_facts.v1.sql"),
        RunSQLFile("vector_indexes/vector_index_needs.v1.sql"),
        # Those that follow keep readers out until the commit.
        RunSQLFile("vector_indexes/search_settings_rebuild.v1.sql"),
        RunSQLFile("vector_indexes/embedding_models_indexed_by.v1.sql"),
        RunSQLFile("vector_indexes/vector_index_status.v1.sql"),
        RecordMigration(
            "0011_concurrent_rebuild",
            "Vector indexes swapped under traffic: measured before the swap, and their status",
        ),
    ]
