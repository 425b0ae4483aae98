"""``manage.py import_v1``: the rows of a v1 database, brought over to v2's tables."""

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from cartrita_search.errors import SearchError
from cartrita_search.ops.import_v1 import BATCH_SIZE, ImportReport, Plan, import_v1
from cartrita_search.terminal import progress, stop_on_signals, table
from cartrita_search.v1.tables import parse_map


class Command(BaseCommand):
    """See ``help``."""

    help = (
        "Bring the rows of v1's tables over: texts and vectors as documents, search weights, and"
        " with --users people as accounts that log in by their v1 password. v1's tables are only"
        " read. A run that was interrupted is gone on with by the next; a run over what came"
        " already changes nothing, but what has changed in v1 since comes again, over changes"
        " made in v2. Times without a zone are taken for UTC. Exit status: 0 all came that can;"
        " 1 stopped by an error, the batches before it stay; 2 the command line cannot be read;"
        " 5 a table may not be read; 75 another import is running; 130 interrupted."
    )
    requires_migrations_checks = True

    def add_arguments(self, parser: CommandParser) -> None:
        """What comes, and the options of `ops.import_v1.import_v1`."""
        parser.add_argument(
            "--model",
            metavar="NAME",
            help="the model that made v1's vectors (default: the one that old embeddings name,"
            " or the only one there is)",
        )
        parser.add_argument(
            "--tables", nargs="+", metavar="TABLE", default=[], help="only these tables"
        )
        parser.add_argument(
            "--users",
            action="store_true",
            help="make accounts of people, with their ids; is_admin, or a role admin, makes a"
            " superuser, the roles staff and moderator members of staff; an account that is"
            " there is never changed",
        )
        parser.add_argument(
            "--map",
            action="append",
            default=[],
            metavar="table=T,key=COLUMN,…",
            help="another table: which column is its key (id), title, content, embedding, owner,"
            " tags, metadata, created_at, keep (for the metadata); several joined by +;"
            " without owner its rows are shared with everybody; may be repeated",
        )
        parser.add_argument(
            "--batch-size",
            type=int,
            default=BATCH_SIZE,
            help="rows of one transaction (default: %(default)s)",
        )
        parser.add_argument(
            "--restart",
            action="store_true",
            help="read rows again that an interrupted run had read",
        )
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="read everything, write nothing, and tell what would be left out and why",
        )
        parser.add_argument("--json", action="store_true", help="print the outcome as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        """Bring the rows over, and print what came."""
        try:
            with stop_on_signals(sys.stderr) as stop:
                report = import_v1(
                    model=options["model"],
                    only=options["tables"],
                    users=options["users"],
                    maps=[parse_map(text) for text in options["map"]],
                    batch_size=options["batch_size"],
                    restart=options["restart"],
                    dry_run=options["dry_run"],
                    planned=None if options["json"] else self._print_plan,
                    bar=lambda rows, label: progress(rows, label, sys.stderr),
                    stop=stop.is_set,
                )
        except SearchError as error:
            raise CommandError(str(error), returncode=error.exit_code) from error
        except KeyboardInterrupt as error:
            raise CommandError(_INTERRUPTED, returncode=130) from error
        if options["json"]:
            self.stdout.write(json.dumps(report.as_json(), indent=2))
        else:
            self._print(report)
        if report.stopped:
            raise CommandError(_INTERRUPTED, returncode=130)

    def _print_plan(self, plan: Plan) -> None:
        found = plan.as_json()
        if plan.is_empty:
            self.stdout.write("There is nothing of v1 to bring over in this database.")
        else:
            names = ("table", "rows", "vectors", "model", "stored")
            self.stdout.write(
                table(
                    ("table", "rows", "vectors", "model", "in v2"),
                    [[each.get(name) for name in names] for each in found["brought"]],
                    right=(1, 2, 4),
                )
            )
        for source in plan.sources:
            if source.left:
                source.notes.append(f"stays in v1 alone: {', '.join(source.left)}")
            for note in source.notes:
                self.stdout.write(f"{source.label}: {note}.")
        for name, reason in plan.skipped.items():
            self.stdout.write(f"Not {name}: {reason}.")

    def _print(self, report: ImportReport) -> None:
        if not report.outcomes:
            return
        for outcome in report.outcomes:
            if outcome.resumed_after is not None:
                self.stdout.write(
                    f"{outcome.table}: an earlier run was interrupted; went on after key"
                    f" {outcome.resumed_after}. Run again for what has changed before it since."
                )
        self.stdout.write(
            table(
                ("table", "would come" if report.dry_run else "brought", "updated", "unchanged",
                 "skipped", "without vector"),
                [
                    (o.table, o.brought, o.updated, o.unchanged, sum(o.skipped.values()),
                     sum(o.vectors_left_out.values()))
                    for o in report.outcomes
                ],
                right=range(1, 6),
            )
        )  # fmt: skip
        for outcome in report.outcomes:
            for what, counts in (
                ("skipped", outcome.skipped),
                ("without their vector", outcome.vectors_left_out),
                ("adjusted", outcome.adjusted),
            ):
                for reason, count in counts.items():
                    keys = outcome.examples[reason]
                    some = f" ({', '.join(keys)}{', …' if count > len(keys) else ''})"
                    self.stdout.write(
                        f"{outcome.table}: {count} {what}: {reason}{some if keys else ''}."
                    )
        for model, built in report.index.items():
            self.stdout.write(f"{model}: {built}")
        if report.dry_run:
            self.stdout.write("A dry run: nothing was written.")
        elif not report.stopped:
            self.stdout.write("v1's tables are as they were. Documents without a vector await one:"
                              " manage.py sync_embeddings")  # fmt: skip


_INTERRUPTED = "Interrupted. What came stays; the same command goes on after it."
