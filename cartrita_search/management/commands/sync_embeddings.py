"""``manage.py sync_embeddings``: embed what is missing or stale."""

import json
import sys
import threading
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from cartrita_search.embedders import Embedder
from cartrita_search.embedding_work import (
    SyncOutcome,
    embedder_of,
    embedding_work,
    sync_embeddings,
)
from cartrita_search.errors import EmbedderOverloaded, EmbedderUnavailable, SearchError
from cartrita_search.terminal import progress, stop_on_signals, table

#: A day; a pause must have an end that a thread can wait for.
MAX_WATCH = 86_400


class Command(BaseCommand):
    """See ``help``."""

    help = (
        "Embed the documents whose vector is missing, or of an older text. Any number of these,"
        " on any number of machines, share the work. A text that the provider refuses is set"
        " aside with its error (table embedding_refusals, and a page of the admin) until it"
        " changes. Ctrl-C and SIGTERM let it finish the batch in hand, a second one does not;"
        " whatever ends it, another run goes on from there. Exit status: 0 all is embedded, or"
        " in the hands of others; 1 refused, or the provider cannot be used; 2 the command line"
        " cannot be read; 3 documents are set aside, the rest is embedded; 130 interrupted."
    )
    requires_migrations_checks = True

    def add_arguments(self, parser: CommandParser) -> None:
        """What to embed, by how many, and how to tell of it."""
        parser.add_argument("--model", metavar="NAME", help="must be the configured embedder's")
        parser.add_argument("--source", metavar="TABLE", help="only documents of this table")
        parser.add_argument("--workers", type=int, default=1, metavar="N", help="threads (1)")
        parser.add_argument(
            "--batch-size",
            type=int,
            metavar="N",
            help="documents of one transaction (the embedder's batch size, at least 64)",
        )
        parser.add_argument(
            "--retry-refused", action="store_true", help="also try again what was set aside"
        )
        parser.add_argument(
            "--watch",
            type=float,
            metavar="SECONDS",
            help="do not end: look for more after so many seconds, until it is told to stop",
        )
        parser.add_argument("--dry-run", action="store_true", help="only count, by source")
        parser.add_argument("--json", action="store_true", help="print the outcome as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        """Count, and unless that is all, embed."""
        watch = options["watch"]
        if watch is not None and not 0 < watch <= MAX_WATCH:  # NaN is neither
            raise CommandError(f"--watch takes seconds, above 0 and at most {MAX_WATCH}.")
        try:
            embedder = embedder_of(options["model"])
            if options["dry_run"]:
                work = embedding_work(embedder.name, options["source"])
                self._print_counts(embedder.name, [asdict(each) for each in work], options["json"])
                return
            with stop_on_signals(sys.stderr) as stop:
                outcome = self._embed_until_stopped(embedder, options, stop)
        except KeyboardInterrupt as error:
            raise CommandError(
                "Interrupted. What was in hand is undone, and the rest is stored.",
                returncode=130,
            ) from error
        except (EmbedderOverloaded, EmbedderUnavailable) as error:
            raise CommandError(f"{error} What is stored stays; another run goes on.") from error
        except SearchError as error:
            raise CommandError(str(error)) from error
        if stop.is_set():
            raise CommandError("Interrupted. Another run goes on from there.", returncode=130)
        if outcome is not None and outcome.set_aside:
            raise CommandError(
                f"{outcome.set_aside} are set aside: see embedding_refusals, in the admin too.",
                returncode=3,
            )

    def _embed_until_stopped(
        self, embedder: Embedder, options: dict[str, Any], stop: threading.Event
    ) -> SyncOutcome | None:
        """Once, or again and again if it is to watch; the outcome of the last run."""
        outcome = None
        while not stop.is_set():
            try:
                outcome = self._embed(embedder, options, stop) or outcome
            except EmbedderOverloaded as error:
                if options["watch"] is None:
                    raise
                self.stderr.write(str(error))
            if options["watch"] is None:
                break
            stop.wait(options["watch"])
        return outcome

    def _embed(
        self, embedder: Embedder, options: dict[str, Any], stop: threading.Event
    ) -> SyncOutcome | None:
        """One run: what there is to embed now. It is told of, unless a watch found nothing."""
        work = embedding_work(embedder.name, options["source"])
        retried = sum(each.set_aside for each in work) if options["retry_refused"] else 0
        total = sum(each.missing + each.stale for each in work) + retried
        if not total and options["watch"] is not None:
            return None  # to look for work document by document takes longer than to count it
        with progress(total, f"Embedding with {embedder.name}", sys.stderr) as advance:
            outcome = sync_embeddings(
                **{name: options[name] for name in ("source", "workers", "batch_size")},
                retry_refused=options["retry_refused"],
                stop=stop,
                progress=advance,
            )
        if options["json"]:
            self.stdout.write(json.dumps(asdict(outcome), indent=2))
        else:
            self.stdout.write(
                f"{outcome.embedded} embedded with {outcome.model} in {outcome.seconds} s"
                f" ({outcome.rate}/s), {outcome.refused} set aside; {outcome.remaining} remain."
            )
        self.stdout.flush()  # whoever watches a watch sees it now
        return outcome

    def _print_counts(self, model: str, work: list[dict[str, Any]], as_json: bool) -> None:
        if as_json:
            self.stdout.write(json.dumps({"model": model, "sources": work}, indent=2))
        elif not work:
            self.stdout.write("There are no documents.")
        else:
            rows = [list(each.values()) for each in work]
            self.stdout.write(table(list(work[0]), rows, right=[1, 2, 3, 4]))
