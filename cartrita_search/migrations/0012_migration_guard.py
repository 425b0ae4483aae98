"""The earlier runner's record kept, and indexes for filters built while people write."""

from django.db import migrations

from cartrita_search.migration_operations import (
    CreateIndexConcurrently,
    KeepEarlierRecord,
    RecordBeginning,
    RecordMigration,
)

RECORD = (
    "0012_migration_guard",
    "The earlier runner's record kept, and indexes for filters built while people write",
)


class Migration(migrations.Migration):
    atomic = False

    dependencies = [("cartrita_search", "0011_concurrent_rebuild")]

    operations = [
        RecordBeginning(*RECORD),
        KeepEarlierRecord(),
        CreateIndexConcurrently("retrieval/search_documents_tags.v1.sql"),
        CreateIndexConcurrently("retrieval/search_documents_metadata.v1.sql"),
        CreateIndexConcurrently("retrieval/search_documents_created_at.v1.sql"),
        RecordMigration(*RECORD),
    ]
