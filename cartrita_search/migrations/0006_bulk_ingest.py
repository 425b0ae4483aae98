"""Bulk ingest: one merge a batch, checks once a statement."""

from django.db import migrations

from cartrita_search.migration_operations import RecordMigration, ReplaceSQLFile, RunSQLFile


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0005_search_filters")]

    operations = [
        # The rebuild that takes in what a large load has put aside.
        ReplaceSQLFile("vector_indexes/vector_index_sql.v2.sql"),
        ReplaceSQLFile("vector_indexes/vector_recall_sample.v2.sql"),
        ReplaceSQLFile("vector_indexes/tune_vector_index.v2.sql"),
        RunSQLFile("vector_indexes/swap_vector_index.v1.sql"),
        ReplaceSQLFile("vector_indexes/rebuild_vector_indexes.v2.sql"),
        RunSQLFile("keywords/keyword_weights.v1.sql"),
        ReplaceSQLFile("keywords/keyword_vector.v2.sql"),
        ReplaceSQLFile("keywords/search_documents_keywords.v2.sql"),
        ReplaceSQLFile("ingest/embeddings_follow_document.v2.sql"),
        RunSQLFile("ingest/embeddings_follow_document_update.v1.sql"),
        RunSQLFile("ingest/embeddings_check_inserted.v1.sql"),
        RunSQLFile("ingest/merge_ingest_batch.v1.sql"),
        # Last, for it keeps readers out until the commit.
        RunSQLFile("vector_indexes/embedding_models_indexed_by.v1.sql"),
        RecordMigration(
            "0006_bulk_ingest", "Bulk ingest: one merge a batch, checks once a statement"
        ),
    ]
