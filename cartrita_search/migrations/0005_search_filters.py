"""Search: more filters, pages, explanations, snippets; storage by model."""

from django.db import migrations

from cartrita_search.migration_operations import RecordMigration, ReplaceSQLFile, RunSQLFile


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0004_add_redis_hybrid_search")]

    operations = [
        ReplaceSQLFile("vector_indexes/vector_index_plan.v2.sql"),
        RunSQLFile("retrieval/search_filter.v1.sql"),
        RunSQLFile("retrieval/make_search_filter.v1.sql"),
        RunSQLFile("retrieval/search_filter_sql.v1.sql"),
        RunSQLFile("retrieval/search_filter_rows.v1.sql"),
        RunSQLFile("retrieval/check_search_page.v1.sql"),
        ReplaceSQLFile("vector_indexes/vector_candidates_sql.v2.sql"),
        ReplaceSQLFile("vector_indexes/vector_recall.v2.sql"),
        ReplaceSQLFile("retrieval/similarity_search.v2.sql"),
        RunSQLFile("retrieval/similarity_statement.v1.sql"),
        RunSQLFile("retrieval/hybrid_candidate.v1.sql"),
        ReplaceSQLFile("retrieval/hybrid_search.v2.sql"),
        RunSQLFile("retrieval/effective_retrieval_config.v1.sql"),
        ReplaceSQLFile("retrieval/hybrid_search_for_user.v2.sql"),
        RunSQLFile("retrieval/search_snippet.v1.sql"),
        RunSQLFile("retrieval/search_settings_keyword_budget.v1.sql"),
        # Last, for they keep readers out until the commit.
        RunSQLFile("ingest/embedding_models_preferred_storage.v1.sql"),
        RunSQLFile("ingest/embedding_models_visible_segment.v1.sql"),
        RunSQLFile("ingest/embeddings_segment.v1.sql"),
        RecordMigration(
            "0005_search_filters",
            "Search: more filters, pages, explanations, snippets; storage by model",
        ),
    ]
