"""``manage.py verify_migrations``: what is applied, and whether it is what this release has."""

import json
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections

from cartrita_search.errors import SearchError
from cartrita_search.ops.migration_guard import MigrationRecord, records
from cartrita_search.terminal import table

#: What to do about each, by state.
REMEDIES = {
    "drift": "applied from other files than this release has; once you know what differs:"
    " manage.py repair_migration_checksum {0.version} --expect {0.recorded_checksum}",
    "missing": "applied, but not recorded: take it back and apply it again, or restore a backup",
    "unknown": "of another release: a newer one than this has migrated the database",
    "half-done": "begun and not ended: manage.py migrate finishes it",
}


class Command(BaseCommand):
    """See ``help``."""

    help = (
        "Show every migration with the time it was applied, and compare it with the files of"
        " this release. Changes nothing. Exit status: 0 all is well (some may be pending); 1"
        " drift, or a row that is missing, unknown or half-done; 5 the role may not read the"
        " record."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """The form of the answer."""
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, choices=tuple(connections))
        parser.add_argument("--json", action="store_true", help="print it as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the table, and what is wrong below it."""
        try:
            found = records(using=options["database"])
        except SearchError as error:
            raise CommandError(str(error), returncode=error.exit_code) from error
        wrong = [record for record in found if record.is_wrong]
        if options["json"]:
            self.stdout.write(json.dumps([asdict(each) for each in found], indent=2, default=str))
        else:
            self.stdout.write(_table(found))
            for record in wrong:
                remedy = REMEDIES[record.state].format(record)
                self.stdout.write(self.style.ERROR(f"{record.version}: {remedy}."))
            pending = sum(record.state == "pending" for record in found)
            if pending:
                self.stdout.write(f"Pending: {pending}. Run: manage.py migrate")
        if wrong:
            raise CommandError(
                f"{len(wrong)} of {len(found)} migrations are not as they should be."
            )


def _table(found: list[MigrationRecord]) -> str:
    return table(
        ["version", "applied at", "state", "description"],
        [
            (
                record.version,
                record.applied_at and f"{record.applied_at:%Y-%m-%d %H:%M:%S}",
                record.state,
                record.description,
            )
            for record in found
        ],
    )
