"""``manage.py sync_documents``: the documents of registered sources, in step with their rows."""

import json
import sys
from argparse import BooleanOptionalAction
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from cartrita_search.errors import SearchError
from cartrita_search.sources import (
    BATCH_SIZE,
    Source,
    SyncReport,
    count_rows,
    find_sources,
    sync_source,
)
from cartrita_search.terminal import one_line, progress, table


class Command(BaseCommand):
    """See ``help``."""

    help = (
        "Bring the documents of registered sources (register_source) up to date with their rows:"
        " store what is new or changed, delete what is gone. A run that was interrupted is gone"
        " on with by the next; runs at the same time share the work. Exit status: 0 in step;"
        " 1 stopped by an error, the batches before it stay; 2 the command line cannot be read;"
        " 3 some rows were refused, the rest is in step; 130 interrupted."
    )
    requires_migrations_checks = True

    def add_arguments(self, parser: CommandParser) -> None:
        """Which sources, and the options of `sources.sync_source`."""
        parser.add_argument(
            "--source",
            metavar="TABLE",
            action="append",
            default=[],
            help="only this source; may be repeated (default: every registered one)",
        )
        parser.add_argument(
            "--batch-size",
            type=int,
            default=BATCH_SIZE,
            help="rows of one transaction (default: %(default)s)",
        )
        parser.add_argument(
            "--restart", action="store_true", help="begin anew where a run was interrupted"
        )
        parser.add_argument(
            "--prune",
            action=BooleanOptionalAction,
            default=True,
            help="delete documents whose row is gone (the default)",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="roll every batch back, and tell what it did"
        )
        parser.add_argument("--json", action="store_true", help="print the outcome as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        """Sync one source after the other, and print what was done."""
        try:
            reports = [self._sync(source, options) for source in find_sources(options["source"])]
        except SearchError as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt as error:
            message = "Interrupted. What was stored stays; the next run goes on after it."
            raise CommandError(message, returncode=130) from error
        if options["json"]:
            self.stdout.write(json.dumps([asdict(report) for report in reports], indent=2))
        else:
            self._print(reports, options["dry_run"])
        if refused := sum(report.refused for report in reports):
            raise CommandError(f"{refused} refused; the rest is in step.", returncode=3)

    def _sync(self, source: Source, options: dict[str, Any]) -> SyncReport:
        chosen = {name: options[name] for name in ("batch_size", "restart", "prune", "dry_run")}
        rows = count_rows(source)
        with progress(max(rows, 1), source.source_table, sys.stderr) as advance:
            return sync_source(source, progress=advance, **chosen)

    def _print(self, reports: list[SyncReport], dry_run: bool) -> None:
        for report in reports:
            if report.resumed_after is not None:
                self.stdout.write(
                    f"{report.source_table}: went on after key {report.resumed_after!r}, "
                    f"{report.rows_before} rows done before."
                )
            for refusal in report.refusals:
                key = f"{refusal.source_table}/{refusal.source_id}#{refusal.chunk_index}"
                self.stderr.write(one_line(f"{key}: {refusal.message}"))
        columns = ("rows", "inserted", "updated", "unchanged", "deleted", "refused")
        self.stdout.write(
            table(
                ["source", *columns],
                [
                    (report.source_table, *(getattr(report, column) for column in columns))
                    for report in reports
                ],
                right=range(1, 7),
            )
        )
        if dry_run:
            self.stdout.write("A dry run: nothing was written.")
        elif any(report.inserted or report.updated for report in reports):
            self.stdout.write("New and changed texts await their vectors.")
