"""``manage.py migrate``: Django's own, one at a time, patient with locks, held to its record."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

from django.core.management import call_command
from django.core.management.base import CommandError, CommandParser
from django.core.management.commands import migrate
from django.db import connections

from cartrita_search.errors import SearchError
from cartrita_search.ops import migration_guard

INTERRUPTED = 130


class Command(migrate.Command):
    """See ``help``."""

    help = (
        "Updates database schema, as Django's migrate does, beside traffic: one migrator at a"
        " time, and no statement that waits long for a lock. Exit status: 0 done, or nothing to"
        " do; 1 refused, with the reason; 2 the command line cannot be read; 5 a privilege is"
        " missing; 75 another migrator or a lock was in the way until the deadline: run it"
        " again; 130 interrupted. Each migration is applied whole or not at all."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Django's, and ours."""
        super().add_arguments(parser)
        parser.add_argument(
            "--backup",
            nargs="?",
            const="",
            metavar="PATH",
            help="Take a verified backup first, if there is anything to migrate; by default"
            " where backup_database puts it.",
        )
        parser.add_argument(
            "--lock-timeout",
            type=seconds,
            default=migration_guard.DEFAULT_LOCK_TIMEOUT,
            metavar="SECONDS",
            help="The longest that a statement waits for a lock, and that others queue behind"
            " it, before it lets them pass and tries again (default: %(default)s).",
        )
        parser.add_argument(
            "--wait",
            type=seconds,
            default=migration_guard.DEFAULT_WAIT,
            metavar="SECONDS",
            help="The longest to wait for another migrator, and for the locks of each"
            " migration (default: %(default)s).",
        )

    def get_check_kwargs(self, options: dict[str, Any]) -> dict[Any, Any]:
        """Without the database: ``pre_migrate`` tells what it lacks, and only where it matters.

        That is in one line, and never on the way back, which needs no pgvector.
        """
        return super().get_check_kwargs(options) | {"databases": []}

    def handle(self, *args: Any, **options: Any) -> None:
        """Guarded, unless it only looks."""
        using, backup = options["database"], options["backup"]
        if (
            options["plan"]
            or options["check_unapplied"]
            or connections[using].vendor != "postgresql"
        ):
            super().handle(*args, **options)
            return
        try:
            with migration_guard.guarded(
                using,
                wait=options["wait"],
                lock_timeout=options["lock_timeout"],
                backup=None if backup is None else partial(self._back_up, backup, using),
                fake=options["fake"],
                say=self._say if options["verbosity"] else lambda _: None,
            ):
                super().handle(*args, **options)
        except SearchError as error:
            raise CommandError(str(error), returncode=error.exit_code) from error
        except KeyboardInterrupt as error:
            raise CommandError(
                "Interrupted. The migration at work was rolled back, or is finished by the next"
                " run; what was applied before it stays.",
                returncode=INTERRUPTED,
            ) from error

    def _back_up(self, path: str, using: str) -> None:
        call_command(
            "backup_database", *([path] if path else []), database=using, stdout=self.stdout
        )

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()


def seconds(argument: str) -> float:
    """A number of seconds, 0.001 at least."""
    value = float(argument)
    if not 0.001 <= value < sys.maxsize:
        raise argparse.ArgumentTypeError("must be 0.001 or more")
    return value
