"""``manage.py vacuum_embeddings``: VACUUM the search tables after bulk work."""

import json
import sys
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.template.defaultfilters import filesizeformat

from cartrita_search.errors import LockHeld, SearchError
from cartrita_search.ops.vacuum import TABLES, TableState, VacuumReport, rewrite_seconds, vacuum
from cartrita_search.terminal import phases, stop_on_signals, table

INTERRUPTED = 130


class Command(BaseCommand):
    """See ``help``."""

    help = (
        "VACUUM (ANALYZE) the search tables, as one should after bulk work: dead rows become free"
        " space, and index-only scans and the planner's figures are right again. Searches and"
        " writers go on. Exit status: 0 done; 1 refused or failed, with the reason; 2 the command"
        " line cannot be read; 75 a table's lock could not be had in time, or indexes are being"
        " rebuilt: try again later; 130 interrupted: tables not listed are as they were."
    )
    requires_migrations_checks = True

    def add_arguments(self, parser: CommandParser) -> None:
        """How thoroughly, and how patiently."""
        add = parser.add_argument
        add(
            "--full",
            action="store_true",
            help="rewrite the tables and all their indexes, which gives the space back to the"
            " operating system; NOBODY can search or write meanwhile. Asks first",
        )
        add("--noinput", action="store_true", help="do not ask")
        add(
            "--lock-timeout",
            type=float,
            default=5.0,
            metavar="SECONDS",
            help="leave a table whose lock cannot be had so soon; with --full everybody queues"
            " behind that wait (default: %(default)g)",
        )
        add("--dry-run", action="store_true", help="only print dead rows and sizes")
        add("--json", action="store_true", help="print the outcome as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do it, and print before and after."""
        try:
            if options["full"]:
                self._warn(ask=not (options["noinput"] or options["dry_run"]))
            with stop_on_signals(sys.stderr) as stop, phases(sys.stderr) as show:
                report = vacuum(
                    full=options["full"],
                    dry_run=options["dry_run"],
                    lock_timeout=options["lock_timeout"],
                    stop=stop,
                    progress=lambda phase: show(phase.name, phase.done, phase.total, phase.unit),
                )
        except SearchError as error:
            raise CommandError(str(error), returncode=error.exit_code) from error
        except KeyboardInterrupt as error:
            raise CommandError("Interrupted.", returncode=INTERRUPTED) from error
        if options["json"]:
            self.stdout.write(json.dumps(asdict(report), indent=2))
        else:
            self.stdout.write(_table(report))
        if report.interrupted:
            raise CommandError("Interrupted.", returncode=INTERRUPTED)
        if report.locked:
            raise CommandError(
                f"In use for longer than {options['lock_timeout']:g} s, and left as they were:"
                f" {', '.join(report.locked)}. Run this again, or say a longer --lock-timeout.",
                returncode=LockHeld.exit_code,
            )

    def _warn(self, *, ask: bool) -> None:
        self.stderr.write(
            f"--full locks {', '.join(TABLES)}, one after the other, against searches and writers,"
            f" for very roughly {rewrite_seconds()} s in all, and needs as much free disk as the"
            " largest of them with its indexes takes."
        )
        if ask:
            try:
                answer = input('Type "yes" to go on: ')
            except EOFError:
                raise CommandError(
                    "Nobody is there to answer. Nothing was changed: say --noinput."
                ) from None
            if answer.strip() != "yes":
                raise CommandError("Nothing was changed.")


def _table(report: VacuumReport) -> str:
    return table(
        ["table", "", "dead before", "after", "rows", "size before", "after", "indexes", "after"],
        [(done.table, done.outcome, *_figures(done.before, done.after)) for done in report.tables],
        right=[2, 3, 4, 5, 6, 7, 8],
    )


def _figures(before: TableState, after: TableState | None) -> tuple[object, ...]:
    return (
        before.dead,
        after and after.dead,
        (after or before).live,
        filesizeformat(before.table_bytes),
        after and filesizeformat(after.table_bytes),
        filesizeformat(before.index_bytes),
        after and filesizeformat(after.index_bytes),
    )
