"""``manage.py demo``: a corpus of real text, and questions put to it."""

import json
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from cartrita_search import demo
from cartrita_search.embedders import get_embedder
from cartrita_search.errors import SearchError
from cartrita_search.terminal import WIDTH, progress


class Command(BaseCommand):
    """See ``help``."""

    help = (
        "Collect the docstrings of Python's standard library, embed and store those that are new"
        " or changed, build the index, and answer questions: by meaning and words together,"
        " beside either alone. Needs a migrated database."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """The size of the corpus, other questions, and ``--json``."""
        parser.add_argument("--limit", type=int, help="documents at most (default: all)")
        parser.add_argument("--questions", nargs="+", metavar="TEXT", default=demo.QUESTIONS)
        parser.add_argument("--json", action="store_true", help="print the outcome as JSON")

    def handle(self, *args: Any, limit: int | None, **options: Any) -> None:
        """One line for each step, then a table for each question."""
        try:
            self._run(limit, options["questions"], options["json"])
        except SearchError as error:
            raise CommandError(str(error)) from error

    def _run(self, limit: int | None, questions: list[str], as_json: bool) -> None:
        say = (lambda text: None) if as_json else self._say
        started = time.monotonic()
        embedder = get_embedder()
        docs = demo.collect(limit)
        pending = demo.pending(docs, embedder.name)
        say(f"{len(docs)} docstrings of Python {sys.version.split()[0]}'s standard library.")
        if pending:
            self.stdout.flush()
            with progress(len(pending), f"Embedding ({embedder.name})", sys.stderr) as advance:
                for stored in demo.load(pending, embedder):
                    advance(stored)
        else:
            say("Nothing to embed: all are stored already, and their content hashes agree.")
        report = demo.build_indexes(embedder.name)
        say(report)
        seconds = time.monotonic() - started
        say(f"{len(pending)} embedded, {len(docs) - len(pending)} unchanged, in {seconds:.1f} s.")
        answers = [demo.ask(question) for question in questions]
        if as_json:
            outcome = {
                "documents": len(docs),
                "embedded": len(pending),
                "seconds": round(seconds, 1),
                "index": report,
                "answers": [answer.as_dict() for answer in answers],
            }
            self.stdout.write(json.dumps(outcome, indent=2))
            return
        for answer in answers:
            say(f"\n{answer.as_table()}\n")
        say(f"... what next ...")

    def _say(self, text: str) -> None:
        self.stdout.write(text)
