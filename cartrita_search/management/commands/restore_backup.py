"""``manage.py restore_backup``: the rollback, with the former database kept."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections

from cartrita_search.errors import SearchError
from cartrita_search.ops.backup import default_path
from cartrita_search.ops.restore import (
    RestorePlan,
    RestoreReport,
    go_back,
    plan_restore,
    restore_backup,
)
from cartrita_search.terminal import phases, sigterm_interrupts


class Command(BaseCommand):
    """See ``help``."""

    help = (
        "Bring a backup back. It is checked in full, loaded into a new database beside, its rows"
        " are counted there, and the new database takes the name in one transaction, which ends"
        " all sessions of the former one. That stays, as <name>__before_<time>, and the command"
        " to go back to it is printed. Killed at any point, one whole database answers under the"
        " name, and another run finishes. Backups made by hand with pg_dump (custom, directory,"
        " tar or plain format) are restored too, with fewer checks, which are named. Exit"
        " status: 0 done; 1 refused or failed, the database is as it was; 2 the command line"
        " cannot be read; 5 this role lacks a right; 75 a migration, backup or restore is at"
        " work; 130 interrupted."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """What to restore, and how."""
        parser.add_argument(
            "path", nargs="?", type=Path, metavar="PATH", help=f"({default_path()})"
        )
        parser.add_argument(
            "--jobs", type=int, metavar="N", help="processes that load it (one a CPU, 4 at most)"
        )
        parser.add_argument(
            "--in-place",
            action="store_true",
            help="overwrite the database in a single transaction, for a role without CREATEDB;"
            " refused where objects were made after the backup",
        )
        old = parser.add_mutually_exclusive_group()
        old.add_argument(
            "--keep-old", action="store_true", help="keep the former database (the default)"
        )
        old.add_argument("--drop-old", action="store_true", help="drop it after the swap")
        parser.add_argument(
            "--back-to",
            metavar="NAME",
            help="no backup: give the name back to a database that a restore kept",
        )
        parser.add_argument(
            "--of-database", metavar="NAME", help="the backup is of a database of that other name"
        )
        parser.add_argument(
            "--database", default=DEFAULT_DB_ALIAS, choices=list(connections), help="Django's name"
        )
        parser.add_argument("--dry-run", action="store_true", help="check, and print the plan")
        parser.add_argument("--noinput", action="store_true", help="ask nothing")
        parser.add_argument("--json", action="store_true", help="print the outcome as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        """Check, ask, restore, and tell of it."""
        using = options["database"]
        others = ("path", "jobs", "in_place", "drop_old", "of_database", "dry_run")
        if options["back_to"] and any(options[name] for name in others):
            raise CommandError(
                "--back-to takes no backup, and no other option but --database, --keep-old,"
                " --noinput and --json.",
                returncode=2,
            )
        if options["in_place"] and (options["keep_old"] or options["drop_old"]):
            raise CommandError(
                "--in-place overwrites the database: there is no former one to keep or drop.",
                returncode=2,
            )
        try:
            if options["back_to"]:
                self._ask(
                    f"Give the name to {options['back_to']}? All sessions of both end.", options
                )
                with sigterm_interrupts():
                    self._tell(go_back(options["back_to"], using=using), options)
                return
            with phases(sys.stderr) as report:
                plan = plan_restore(
                    options["path"],
                    jobs=options["jobs"],
                    in_place=options["in_place"],
                    of_database=options["of_database"],
                    using=using,
                    progress=report,
                )
            self._show(plan, options)
            if options["dry_run"]:
                return
            self._ask(
                f"Overwrite database {plan.database}? Nothing of it is kept."
                if plan.in_place
                else f"Replace database {plan.database}? All its sessions end.",
                options,
            )
            with sigterm_interrupts(), phases(sys.stderr) as report:
                done = restore_backup(plan, drop_old=options["drop_old"], progress=report)
        except KeyboardInterrupt as error:
            kept = "" if options["in_place"] else " and the former kept"
            raise CommandError(
                f"Interrupted. The database is as it was, or wholly restored{kept}.",
                returncode=130,
            ) from error
        except SearchError as error:
            raise CommandError(str(error), returncode=error.exit_code) from error
        self._tell(done, options)

    def _ask(self, what: str, options: dict[str, Any]) -> None:
        if options["noinput"]:
            return
        try:
            answer = input(f"{what} [yes/no] ")
        except EOFError:
            answer = ""
        if answer.strip().lower() != "yes":
            raise CommandError("Nothing was touched. (Without a terminal: --noinput)")

    def _show(self, plan: RestorePlan, options: dict[str, Any]) -> None:
        if options["json"]:
            if options["dry_run"]:
                self.stdout.write(json.dumps(plan.as_json(), indent=2))
            return
        for line in plan.lines(drop_old=options["drop_old"]):
            self.stdout.write(line)

    def _tell(self, done: RestoreReport, options: dict[str, Any]) -> None:
        if options["json"]:
            self.stdout.write(json.dumps(asdict(done), indent=2))
            return
        counted = "" if done.rows is None else f": {done.tables} tables, {done.rows} rows"
        self.stdout.write(
            f"Database {done.database} is {done.path} again{counted}, in {done.seconds} s."
        )
        for warning in done.warnings:
            self.stdout.write(self.style.WARNING(f"See to it by hand: {warning}"))
        if done.kept:
            self.stdout.write(f"The former database is kept as {done.kept}.")
            self.stdout.write(f"To go back to it: {done.go_back}")
            self.stdout.write(f"To drop it:       {done.drop_kept}")
