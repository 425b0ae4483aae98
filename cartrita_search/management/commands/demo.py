"""``manage.py demo``: a corpus of real text, and questions put to it."""

import json
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from cartrita_search import demo
from cartrita_search.errors import SearchError


class Command(BaseCommand):
    """See ``help``."""

    help = (
        "Collect the docstrings of Python's standard library, embed and store those that are new"
        " or changed, build the index that suits them, and answer questions: by meaning and"
        " words together, beside either alone. Documents of other sources are left alone."
    )
    requires_migrations_checks = True

    def add_arguments(self, parser: CommandParser) -> None:
        """The size of the corpus, other questions, and ``--json``."""
        parser.add_argument("--limit", type=int, help="take so many documents (default: all)")
        parser.add_argument("--questions", nargs="+", metavar="TEXT", default=demo.QUESTIONS)
        parser.add_argument("--json", action="store_true", help="print the outcome as JSON")

    def handle(self, *args: Any, limit: int | None, **options: Any) -> None:
        """Load what is missing, then answer."""
        as_json = options["json"]
        try:
            loaded = demo.load(limit, (lambda line: None) if as_json else self._say)
            answers = [demo.ask(question) for question in options["questions"]]
        except SearchError as error:
            raise CommandError(str(error)) from error
        if as_json:
            outcome = {**asdict(loaded), "answers": [answer.as_dict() for answer in answers]}
            self._say(json.dumps(outcome, indent=2))
        else:
            for part in (demo.LEGEND, *answers, demo.next_steps()):
                self._say(f"\n{part}")

    def _say(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()  # the progress bar is on the other stream
