"""``manage.py backup_database``: a whole backup, made while the database is in use."""

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections

from cartrita_search.errors import SearchError
from cartrita_search.ops.backup import backup_database, default_path
from cartrita_search.terminal import phases, sigterm_interrupts


class Command(BaseCommand):
    """See ``help``."""

    help = (
        "Back the whole database up with pg_dump, while it is in use; read the backup back in"
        " full; write its row counts, versions and SHA-256 beside it (PATH.json). It appears"
        " under its name when it is whole, and an earlier one of that name is kept, renamed by"
        " its time. restore_backup brings it back. It goes to the server itself"
        " (MIGRATE_DATABASE_URL where that is set), and takes a pg_dump at least as new as the"
        " server: see POSTGRES_BIN. Exit status: 0 made; 1 refused or failed, nothing is"
        " changed; 2 the command line cannot be read; 5 this role may not read a table; 75"
        " another backup is at work; 130 interrupted."
    )
    # Whether the migrations are applied, or fit, is nothing to a backup.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Where to, and how."""
        parser.add_argument(
            "path", nargs="?", type=Path, metavar="PATH", help=f"({default_path()})"
        )
        parser.add_argument(
            "--jobs",
            type=int,
            default=1,
            metavar="N",
            help="tables dumped at a time (1); more than one make PATH a folder, in pg_dump's"
            " directory format",
        )
        parser.add_argument(
            "--database", default=DEFAULT_DB_ALIAS, choices=list(connections), help="Django's name"
        )
        parser.add_argument("--json", action="store_true", help="print the outcome as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        """Back up, and tell of it."""
        try:
            with sigterm_interrupts(), phases(sys.stderr) as report:
                done = backup_database(
                    options["path"],
                    jobs=options["jobs"],
                    using=options["database"],
                    progress=report,
                )
        except KeyboardInterrupt as error:
            raise CommandError("Interrupted. Nothing was changed.", returncode=130) from error
        except SearchError as error:
            raise CommandError(str(error), returncode=error.exit_code) from error
        if options["json"]:
            self.stdout.write(json.dumps(asdict(done), indent=2))
            return
        self.stdout.write(
            f"{done.path}: database {done.database}, {done.tables} tables, {done.rows} rows,"
            f" {done.bytes} bytes, read back in full, in {done.seconds} s."
        )
        if done.earlier:
            self.stdout.write(f"The earlier backup of that name is now {done.earlier}.")
        self.stdout.write(f"To bring it back: manage.py restore_backup {shlex.quote(done.path)}")
