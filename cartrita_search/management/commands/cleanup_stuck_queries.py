"""``manage.py cleanup_stuck_queries``: who holds everybody up, and ending it."""

import argparse
import json
import math
import sys
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import psycopg
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections

from cartrita_search.db import direct_connection
from cartrita_search.errors import PrivilegeMissing, SearchError
from cartrita_search.ops import stuck_queries
from cartrita_search.ops.stuck_queries import Limits, Survey
from cartrita_search.terminal import stop_on_signals

FOUND = 3
SURVIVED = 4

#: Thirty years in seconds: a thread cannot wait for ten times as long.
MOST = 1_000_000_000


class Command(BaseCommand):
    """See ``help``."""

    help = (
        "Show the sessions that hold others up: idle in transaction for long, or at the root of a"
        " lock queue on the search tables. Changes nothing, unless --execute: then what is active"
        " is cancelled, and terminated if that does not help, and what is idle in transaction is"
        " terminated; each leaves a row in operator_actions. Never ended: replication, autovacuum"
        " and other background work, superusers, other databases, running backups, restores,"
        " migrations, rebuilds and imports, and this command. A prepared transaction is reported."
        " Takes a role with pg_read_all_stats, and pg_signal_backend to end sessions of others."
        " Exit status: 0 nothing is stuck, or no longer; 1 refused; 2 the command line cannot be"
        " read; 3 something is stuck, and nothing was done; 4 something is stuck still; 5 not all"
        " can be seen, or ended: a grant or setting is missing, which is named."
    )
    # It must run when the database is in no good state.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """From when on, which, and what to do."""
        limits = Limits()
        parser.add_argument(
            "--idle-minutes",
            type=_amount,
            default=limits.idle_seconds / 60,
            metavar="N",
            help="idle in transaction for so long is stuck (%(default)g)",
        )
        parser.add_argument(
            "--blocking-seconds",
            type=_amount,
            default=limits.blocking_seconds,
            metavar="N",
            help="so is the root of a queue in which one has waited for so long (%(default)g)",
        )
        tables = parser.add_mutually_exclusive_group()
        tables.add_argument(
            "--table",
            action="extend",
            nargs="+",
            default=[],
            metavar="NAME",
            help="queues on these tables (the search tables)",
        )
        tables.add_argument("--all-tables", action="store_true", help="any lock queue")
        parser.add_argument("--execute", action="store_true", help="end what is stuck")
        parser.add_argument("--noinput", action="store_true", help="do not ask before that")
        parser.add_argument(
            "--protect",
            action="extend",
            nargs="+",
            default=[],
            metavar="APPNAME",
            help="leave sessions of this application_name alone",
        )
        parser.add_argument(
            "--watch", type=_amount, metavar="SECONDS", help="look again and again until Ctrl-C"
        )
        parser.add_argument("--json", action="store_true", help="a line of JSON for each look")
        parser.add_argument(
            "--database", default=DEFAULT_DB_ALIAS, choices=list(connections), metavar="ALIAS"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Look, act if told to, and again if told to."""
        watch = options["watch"]
        if watch and options["execute"] and not options["noinput"]:
            raise CommandError("--watch with --execute cannot ask each time: add --noinput.")
        try:
            with stop_on_signals(sys.stderr) if watch else nullcontext() as stop:
                found = self._look(options)
                while stop is not None and not stop.wait(watch):
                    found = self._look(options)
        except SearchError as error:
            raise CommandError(str(error), returncode=error.exit_code) from error
        except psycopg.OperationalError as error:
            raise CommandError(
                f"The connection was lost: {' '.join(str(error).split())}. What was ended until"
                " then is in the log and in operator_actions. Run this again."
            ) from error
        if found.stuck and options["execute"]:
            raise CommandError(f"{len(found.stuck)} stuck still.", returncode=SURVIVED)
        if found.stuck:
            raise CommandError(
                f"{len(found.stuck)} stuck. Nothing was changed; --execute ends what can be.",
                returncode=FOUND,
            )
        if found.hidden:
            raise CommandError(
                f"{found.hidden} sessions cannot be seen, so whether any of these is idle in a"
                " transaction is not known: track_activities is off for them. Turn it on for"
                " their role or database, or by ALTER SYSTEM, as a superuser.",
                returncode=PrivilegeMissing.exit_code,
            )

    def _look(self, options: dict[str, Any]) -> Survey:
        using = options["database"]
        limits = Limits(
            options["idle_minutes"] * 60,
            options["blocking_seconds"],
            None if options["all_tables"] else tuple(options["table"]),
            tuple(options["protect"]),
        )
        with direct_connection(stuck_queries.APPLICATION_NAME, using=using) as connection:
            found = stuck_queries.survey(connection, limits, using=using)
            if options["execute"] and found.to_end:
                if not options["noinput"]:
                    self._ask(found)
                found = stuck_queries.end(connection, found, using=using)
        if options["json"]:
            self.stdout.write(json.dumps(_as_json(found, dry_run=not options["execute"])))
        else:
            self._print(found, dry_run=not options["execute"])
        self.stdout.flush()  # who watches through a pipe sees it now
        return found

    def _print(self, found: Survey, *, dry_run: bool) -> None:
        if found.findings:
            self.stdout.write(stuck_queries.tree(found.findings, dry_run=dry_run))
        ended = sum(f.outcome in {"cancelled", "terminated"} for f in found.findings)
        self.stdout.write(
            f"{found.database}: {len(found.stuck)} stuck, {ended} ended;"
            f" {found.idle_below} more idle in transaction, below the limit."
            + (f" {found.hidden} cannot be seen." if found.hidden else "")
        )
        if dry_run and not all(finding.session.may_signal for finding in found.to_end):
            self.stderr.write(f'To end them the role "{found.role}" needs pg_signal_backend.')

    def _ask(self, found: Survey) -> None:
        self.stdout.write(stuck_queries.tree(found.findings, dry_run=True))
        try:
            answer = input(f"This ends {len(found.to_end)} sessions. Type yes to go on: ")
        except EOFError:
            raise CommandError(
                "Nobody is there to answer. Nothing was changed: say --noinput.", returncode=FOUND
            ) from None
        if answer.strip().lower() != "yes":
            raise CommandError("Nothing was changed.", returncode=FOUND)


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MOST:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to {MOST:,}")
    return value


def _as_json(found: Survey, *, dry_run: bool) -> dict[str, Any]:
    return {
        "database": found.database,
        "dry_run": dry_run,
        "stuck": len(found.stuck),
        "idle_below_limit": found.idle_below,
        "hidden": found.hidden,
        "sessions": [
            {
                name: value.isoformat() if hasattr(value, "isoformat") else value
                for name, value in asdict(finding.session).items()
                if name not in {"tables", "wanted_table", "wanted_transaction"}
            }
            | {name: getattr(finding, name) for name in ("stuck", "action", "reason", "outcome")}
            for finding in found.findings
        ],
    }
