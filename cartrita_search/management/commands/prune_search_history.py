"""``manage.py prune_search_history``: clear old rows of the records of searches away."""

import json
import sys
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections

from cartrita_search.errors import SearchError
from cartrita_search.ops.search_history import BATCH_SIZE, PruneReport, prune
from cartrita_search.terminal import progress, stop_on_signals, table


class Command(BaseCommand):
    """See ``help``."""

    help = (
        "Delete the rows of search_performance_metrics and cache_invalidation_log that are older"
        " than METRICS_KEEP_DAYS, in short transactions beside all other work; once a day is"
        " enough. Whatever ends it, what is deleted stays deleted, and another run goes on from"
        " there. Space is freed for new rows, not given back to the system: VACUUM FULL does"
        " that, and locks the table. Exit status: 0 done; 1 refused; 2 the command line cannot"
        " be read; 130 interrupted."
    )
    requires_migrations_checks = True

    def add_arguments(self, parser: CommandParser) -> None:
        """What to keep, and how to tell of it."""
        parser.add_argument(
            "--keep-days",
            type=int,
            metavar="N",
            help="days of 24 hours, 1 to 36,500 (default: METRICS_KEEP_DAYS)",
        )
        parser.add_argument(
            "--batch-size",
            type=int,
            default=BATCH_SIZE,
            metavar="N",
            help="rows of one transaction (default: %(default)s)",
        )
        parser.add_argument("--dry-run", action="store_true", help="only count")
        parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, choices=tuple(connections))

    def handle(self, *args: Any, **options: Any) -> None:
        """Count, prune, and print what was deleted."""
        chosen: dict[str, Any] = {"using": options["database"]}
        try:
            counted = prune(options["keep_days"], dry_run=True, **chosen)
            total = sum(each.old for each in counted.tables)
            if options["dry_run"]:
                self._print(counted, options["json"])
                return
            with (
                stop_on_signals(sys.stderr) as stop,
                progress(total, "Deleting", sys.stderr) as advance,
            ):
                report = prune(
                    counted.keep_days,
                    batch_size=options["batch_size"],
                    stop=stop,
                    progress=advance,
                    **chosen,
                )
        except KeyboardInterrupt as error:
            raise CommandError(
                "Interrupted. What is deleted stays so; another run goes on from there.",
                returncode=130,
            ) from error
        except SearchError as error:
            raise CommandError(str(error), returncode=error.exit_code) from error
        self._print(report, options["json"])
        if report.stopped:
            raise CommandError("Interrupted. Another run goes on from there.", returncode=130)

    def _print(self, report: PruneReport, as_json: bool) -> None:
        if as_json:
            self.stdout.write(json.dumps(asdict(report), default=str, indent=2))
            return
        self.stdout.write(
            table(
                ["table", "old", "deleted", "oldest that stays"],
                [(each.table, each.old, each.deleted, each.oldest) for each in report.tables],
                right=[1, 2],
            )
        )
        self.stdout.write(
            f"Rows from before {report.keep_from:%Y-%m-%d %H:%M} UTC are old"
            f" ({report.keep_days} days are kept)."
        )
        if report.dry_run:
            self.stdout.write("A dry run: nothing was deleted.")
