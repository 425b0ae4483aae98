"""How complete the vectors are, and what BM25 knows about each language's words.

`KeywordStatistic` has no page of its own: Django's admin takes no model with a
composite primary key. Its most frequent lexemes are on their corpus's page.
"""

from __future__ import annotations

from django.contrib import admin
from django.utils.html import format_html_join

from ..models import KeywordCorpus, KeywordStatistic, VectorSearchStats
from .base import ReadOnly

#: Enough to see stop words of a wrong language among them.
SHOWN_LEXEMES = 25


@admin.register(VectorSearchStats)
class VectorSearchStatsAdmin(ReadOnly):
    """A row for each source and model. The view reads both tables each time."""

    list_display = (
        "source_table",
        "embedding_model",
        "dimensions",
        "documents",
        "embeddings",
        "missing",
        "stale",
        "oldest",
        "newest",
    )
    show_full_result_count = False


@admin.register(KeywordCorpus)
class KeywordCorpusAdmin(ReadOnly):
    """As counted by the last ``refresh_keyword_statistics()``."""

    list_display = ("language", "documents", "average_length", "refreshed_at")
    fields = (*list_display, "most_frequent_lexemes")
    readonly_fields = ("most_frequent_lexemes",)

    @admin.display(description="most frequent lexemes")
    def most_frequent_lexemes(self, corpus: KeywordCorpus) -> str:
        """Lexemes with the number of documents that hold them."""
        found = KeywordStatistic.objects.filter(language=corpus.pk).order_by(
            "-document_frequency", "lexeme"
        )
        return format_html_join(
            ", ",
            "{} ({})",
            found.values_list("lexeme", "document_frequency")[:SHOWN_LEXEMES],
        )
