"""``manage.py invalidate_search_cache``: let no cached answer be found again."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from cartrita_search.cache import NAMESPACES, invalidate
from cartrita_search.errors import SearchError
from cartrita_search.ops.actions import operator


class Command(BaseCommand):
    """See ``help``."""

    help = (
        "Make cached search results unfindable: all of them, or those of a namespace, a person, a"
        " source, or one entry. Committed writes need no such thing: no answer from before one is"
        " ever returned. It leaves a row in cache_invalidation_log. Exit status: 0 done; 1"
        " refused, with the reason; 2 the command line cannot be read; 75 Redis does not answer."
    )
    requires_migrations_checks = True

    def add_arguments(self, parser: CommandParser) -> None:
        """What, and why."""
        target = parser.add_mutually_exclusive_group(required=True)
        target.add_argument("--all", action="store_true", help="every answer")
        named = "; ".join(f"{name}: {concerned}" for name, concerned in NAMESPACES.items())
        target.add_argument("--namespace", choices=list(NAMESPACES), help=named)
        target.add_argument("--user", type=int, metavar="ID", help="answers for this person")
        target.add_argument(
            "--source",
            metavar="NAME",
            help="answers restricted to this source_table, and those restricted to none",
        )
        target.add_argument("--key", metavar="HEX", help="one entry; it is Redis that is told")
        parser.add_argument(
            "--reason", default="by hand", help='for the log (default "%(default)s")'
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Do it, and print what was invalidated."""
        namespace = "identity" if options["all"] else options["namespace"]
        try:
            row = invalidate(
                namespace,
                key=options["key"],
                user=options["user"],
                source=options["source"],
                reason=options["reason"],
                by=operator(),
            )
        except SearchError as error:
            raise CommandError(str(error), returncode=error.exit_code) from error
        self.stdout.write(f"Invalidated: {row.cache_key or row.cache_namespace}.")
