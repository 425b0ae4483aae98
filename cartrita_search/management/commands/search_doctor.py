"""``manage.py search_doctor``: what is wrong, on one screen."""

import json
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections

from cartrita_search.errors import SearchError
from cartrita_search.ops.doctor import Examination, examine

FOUND = 3


class Command(BaseCommand):
    """See ``help``."""

    help = (
        "Look at the database, its migrations, indexes, embeddings and statistics, at Redis and"
        " at the server: each finding with its id, what shows it, and the command that mends it."
        " docs/troubleshooting.md explains every id. Changes nothing. What this role may not see"
        " is said to be not looked at. Exit status: 0 looked at; 1 there is no database to look"
        " at; 2 the command line cannot be read; 3 there is a finding as severe as --fail-on"
        " says."
    )
    # The doctor tells by itself.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Which database, and how to tell of it."""
        parser.add_argument("--json", action="store_true", help="print it as JSON")
        parser.add_argument(
            "--fail-on",
            choices=["warning", "error"],
            help="exit with 3 if there is a finding so severe, or more",
        )
        parser.add_argument(
            "--database", default=DEFAULT_DB_ALIAS, choices=list(connections), metavar="ALIAS"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Look, and print what was found."""
        try:
            found = examine(using=options["database"])
        except SearchError as error:
            raise CommandError(str(error), returncode=error.exit_code) from error
        if options["json"]:
            self.stdout.write(json.dumps(asdict(found), indent=2, default=str))
        else:
            self._print(found)
        if options["fail_on"] and (severe := found.worst(options["fail_on"])):
            raise CommandError(f"{len(severe)} to mend.", returncode=FOUND)

    def _print(self, found: Examination) -> None:
        self.stdout.write(
            f"{found.database}: PostgreSQL {found.postgresql}, pgvector {found.pgvector or '-'};"
            f" {found.looked_at - len(found.skipped)} things looked at in {found.seconds:g} s"
        )
        for finding in found.findings:
            style = self.style.ERROR if finding.severity == "error" else self.style.WARNING
            self.stdout.write(
                f"{style(f'{finding.severity:7}')}  {finding.id}  {finding.evidence}\n"
                f"               -> {finding.remedy}"
            )
        for reason in dict.fromkeys(found.skipped.values()):
            keys = ", ".join(key for key, why in found.skipped.items() if why == reason)
            self.stdout.write(f"unknown  {keys}: not looked at, because {reason}")
        done = ", ".join(f"{name} {when:%F %R}" for name, when in found.last_actions.items())
        self.stdout.write(
            f"{len(found.findings)} to mend, see docs/troubleshooting.md."
            f" Last done: {done or 'no backup, no rebuild'}."
        )
