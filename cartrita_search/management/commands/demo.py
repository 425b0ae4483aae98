"""``manage.py demo``: a corpus of real text, and questions put to it."""

import json
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from cartrita_search import demo
from cartrita_search.embedders import get_embedder
from cartrita_search.errors import SearchError
from cartrita_search.terminal import WIDTH, progress


class Command(BaseCommand):
    """See ``help``."""

    help = (
        "Collect the docstrings of Python's standard library, embed and store those that are new"
        " or changed, build the index that suits them, and answer questions: by meaning and"
        " words together, beside either alone. What other sources have stored is left alone."
    )
    requires_migrations_checks = True

    def add_arguments(self, parser: CommandParser) -> None:
        """The size of the corpus, other questions, and ``--json``."""
        parser.add_argument("--limit", type=int, help="take so many documents (default: all)")
        parser.add_argument("--questions", nargs="+", metavar="TEXT", default=demo.QUESTIONS)
        parser.add_argument("--json", action="store_true", help="print the outcome as JSON")

    def handle(self, *args: Any, limit: int | None, **options: Any) -> None:
        """Load what is missing, then a table for each question."""
        self.quiet = options["json"]
        try:
            outcome = self.load(limit)
            answers = [demo.ask(question) for question in options["questions"]]
        except SearchError as error:
            raise CommandError(str(error)) from error
        if options["json"]:
            outcome["answers"] = [answer.as_dict() for answer in answers]
            self.stdout.write(json.dumps(outcome, indent=2))
        else:
            python = Path(sys.executable)
            if python.is_relative_to(Path.cwd()):
                python = python.relative_to(Path.cwd())
            manage = f"{'DEBUG=true ' if settings.DEBUG else ''}{python} manage.py"
            self.say(demo.LEGEND, *answers, demo.NEXT_STEPS.format(manage=manage))
