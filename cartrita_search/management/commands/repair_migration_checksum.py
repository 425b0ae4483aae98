"""``manage.py repair_migration_checksum``: accept a migration's files as they are now."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections

from cartrita_search.errors import SearchError
from cartrita_search.ops.migration_guard import repair_checksum


class Command(BaseCommand):
    """See ``help``."""

    help = (
        "Record the present checksum of one applied migration, after you have looked at what"
        " differs from the files it was applied from. The database's objects stay as they are."
        " Exit status: 0 one row was rewritten, and operator_actions says so; 1 refused, and"
        " nothing was changed."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Which row, and what it must hold."""
        parser.add_argument("version", help="as verify_migrations lists it")
        parser.add_argument(
            "--expect", required=True, metavar="OLD", help="the checksum recorded now"
        )
        parser.add_argument("--reason", default="", help="why, for the record")
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, choices=tuple(connections))

    def handle(self, *args: Any, **options: Any) -> None:
        """Do it, and print what was done."""
        try:
            record = repair_checksum(
                options["version"],
                expect=options["expect"],
                reason=options["reason"],
                using=options["database"],
            )
        except SearchError as error:
            raise CommandError(str(error), returncode=error.exit_code) from error
        self.stdout.write(f"{record.version} is recorded as {record.recorded_checksum} now.")
