"""``manage.py embedded``: start, stop, and ask after the embedded servers."""

import json
import sys
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from cartrita.embedded.postgres import EmbeddedPostgres
from cartrita.embedded.redis import EmbeddedRedis
from cartrita.embedded.server import EmbeddedServer

NOT_RUNNING = 3


class Command(BaseCommand):
    """See ``help``."""

    help = (
        "Start, stop, or ask after the embedded PostgreSQL and Redis that serve development when"
        " no DATABASE_URL and no REDIS_URL are set. They start by themselves with the first"
        " connection and keep running afterwards; their data is in CARTRITA_EMBEDDED_DIR"
        " (.embedded in the project's folder)."
        " Exit status: 0 done, or both running; 1 a server could not be started or stopped;"
        " 3 (status) at least one of them is not running."
    )
    requires_system_checks: list[str] = []  # noqa: RUF012  (Django's own declaration)

    def add_arguments(self, parser: CommandParser) -> None:
        """One action, and ``--json``."""
        parser.add_argument("action", choices=["start", "stop", "status"])
        parser.add_argument("--json", action="store_true", help="print the status as JSON")

    def handle(self, *args: Any, action: str, **options: Any) -> None:
        """Do it to both servers and print how each is now."""
        servers: list[EmbeddedServer] = [
            EmbeddedPostgres.from_settings(),
            EmbeddedRedis.from_settings(),
        ]
        for server in servers:
            if action == "start":
                server.start()
            elif action == "stop":
                server.stop()
        found = [server.status() for server in servers]
        if options["json"]:
            report = {status.name: asdict(status) for status in found}
            self.stdout.write(json.dumps(report, default=str, indent=2))
        else:
            for status in found:
                state = f"running, pid {status.pid}" if status.running else "not running"
                self.stdout.write(f"{status.name}: {state}; socket {status.socket}")
        if action == "status" and not all(status.running for status in found):
            sys.exit(NOT_RUNNING)
