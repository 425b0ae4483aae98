"""``manage.py refresh_keyword_statistics``: recount what BM25 needs."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections

from cartrita_search.errors import SearchError, search_errors


class Command(BaseCommand):
    """See ``help``."""

    help = (
        "Count anew in how many documents each word occurs, and how long documents are: what"
        " BM25 weighs words by. After bulk loads, and every hour or day as the corpus changes;"
        " until then a search weighs words by the older counts. Writers of documents wait for"
        " it, searches do not. Exit status: 0 done; 1 refused."
    )
    requires_migrations_checks = True

    def add_arguments(self, parser: CommandParser) -> None:
        """Where."""
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, choices=tuple(connections))

    def handle(self, *args: Any, **options: Any) -> None:
        """Recount, and say what there is."""
        connection = connections[options["database"]]
        try:
            with search_errors(), connection.cursor() as cursor:
                cursor.execute("SELECT refresh_keyword_statistics()")
                cursor.execute("SELECT language, documents FROM keyword_corpora ORDER BY 1")
                corpora = cursor.fetchall()
        except SearchError as error:
            raise CommandError(str(error), returncode=error.exit_code) from error
        counted = ", ".join(f"{documents} {language}" for language, documents in corpora)
        self.stdout.write(f"Documents counted: {counted or 'there are none'}.")
