"""Keyword vectors of stored documents by the present BM25 weights (b 0.6)."""

from django.db import migrations

from cartrita_search.migration_operations import RecordMigration


class Migration(migrations.Migration):
    # In a transaction of its own: it holds row locks for as long as it takes, and
    # together with the change of the trigger it would keep readers waiting.
    dependencies = [("cartrita_search", "0008_source_sync")]

    operations = [
        migrations.RunSQL(
            """
            UPDATE public.search_documents AS d
            SET keyword_vector = public.keyword_vector(d.search_vector, c.average_length)
            FROM public.keyword_corpora AS c
            WHERE c.language = d.language
            """,
            # The former weights rank nearly the same; the next refresh brings them back.
            reverse_sql=migrations.RunSQL.noop,
        ),
        RecordMigration(
            "0009_reweigh_keywords",
            "Keyword vectors of stored documents by the present BM25 weights (b 0.6)",
        ),
    ]
