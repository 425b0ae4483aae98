"""Vector indexes that follow a plan: exact scan, HNSW or IVFFlat, measured."""

from django.db import migrations

from cartrita_search.migration_operations import RecordMigration, RunSQLFile


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0002_add_vector_extension")]

    operations = [
        RunSQLFile("vector_indexes/vector_index_choice.v1.sql"),
        RunSQLFile("vector_indexes/vector_index_name.v1.sql"),
        RunSQLFile("vector_indexes/vector_row_count.v1.sql"),
        RunSQLFile("vector_indexes/vector_index_plan.v1.sql"),
        RunSQLFile("vector_indexes/vector_index_sql.v1.sql"),
        RunSQLFile("vector_indexes/vector_recall_sample.v1.sql"),
        RunSQLFile("vector_indexes/vector_recall.v1.sql"),
        RunSQLFile("vector_indexes/tune_vector_index.v1.sql"),
        RunSQLFile("vector_indexes/drop_vector_index.v1.sql"),
        RunSQLFile("vector_indexes/rebuild_vector_indexes.v1.sql"),
        RecordMigration(
            "0003_optimize_vector_indexes",
            "Vector indexes that follow a plan: exact scan, HNSW or IVFFlat, measured",
        ),
    ]
