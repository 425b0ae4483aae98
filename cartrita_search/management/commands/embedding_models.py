"""``manage.py embedding_models``: list, make the default, choose the storage, drop."""

import json
import shlex
import sys
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.template.defaultfilters import filesizeformat

from cartrita_search.errors import SearchError
from cartrita_search.models import EmbeddingModel
from cartrita_search.ops import embedding_models
from cartrita_search.terminal import progress, table

INTERRUPTED = 130


class Command(BaseCommand):
    """See ``help``."""

    help = (
        "List the embedding models, make one the default, choose what its vector index stores, or"
        " drop one with its index and vectors. Exit status: 0 done; 1 refused, with the reason;"
        " 2 the command line cannot be read; 130 a drop was interrupted: run it"
        " again, and it goes on."
    )
    requires_migrations_checks = True

    def add_arguments(self, parser: CommandParser) -> None:
        """A subcommand for each."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        action = actions.add_parser("list", help="every model, its vectors and its index")
        action.add_argument("--json", action="store_true", help="print it as JSON")

        action = actions.add_parser("default", help="answer searches that name no model by it")
        action.add_argument("name")

        action = actions.add_parser("storage", help="choose what its next index stores")
        action.add_argument("name")
        action.add_argument(
            "storage",
            choices=["auto", *EmbeddingModel.IndexStorage.values],
            help="vector: 32 bits a component, up to 2,000 dimensions; halfvec: 16, up to 4,000;"
            " bit: 1, up to 16,000; auto: halfvec where it can, bit beyond",
        )
        action.add_argument(
            "--rebuild",
            action="store_true",
            help="build it now, while searches and writers go on",
        )

        action = actions.add_parser("drop", help="delete it, its index and its vectors")
        action.add_argument("name")
        action.add_argument("--noinput", action="store_true", help="do not ask for its name")
        action.add_argument("--dry-run", action="store_true", help="only say what would go")

    def handle(self, *args: Any, action: str, **options: Any) -> None:
        """Do it, and print what was done."""
        try:
            getattr(self, f"_{action}")(**options)
        except SearchError as error:
            raise CommandError(str(error)) from error

    def _list(self, **options: Any) -> None:
        found = embedding_models.statuses()
        if options["json"]:
            self.stdout.write(json.dumps([asdict(model) for model in found], indent=2))
        elif not found:
            self.stdout.write("No embedding model is registered yet: its first vector does that.")
        else:
            self.stdout.write(_table(found))
            for model in found:
                self._say_shortcomings(model)

    def _default(self, *, name: str, **options: Any) -> None:
        embedding_models.make_default(name)
        self.stdout.write(f"Searches that name no model are answered by {name}.")
        self._say_shortcomings(embedding_models.status(name))

    def _storage(self, *, name: str, storage: str, rebuild: bool, **options: Any) -> None:
        embedding_models.prefer_storage(name, storage)
        if rebuild:
            self.stdout.write(embedding_models.rebuild(name))
        else:
            self.stdout.write(
                f"The next index of {name} stores: {storage}. The one in place serves until it is"
                f" rebuilt: manage.py rebuild_vector_indexes --model {shlex.quote(name)}"
            )

    def _drop(self, *, name: str, noinput: bool, dry_run: bool, **options: Any) -> None:
        plan = embedding_models.drop_plan(name)
        contents = f"{plan.vectors} vectors, {', '.join(plan.indexes) or 'no index'}"
        if dry_run:
            self.stdout.write(f"Would drop {name}: {contents}. Its documents would stay.")
            return
        if not noinput:
            self._ask(name, contents)
        try:
            with progress(max(1, plan.vectors), f"Dropping {name}", sys.stderr) as advance:
                dropped = embedding_models.drop(name, progress=advance)
        except KeyboardInterrupt as error:
            raise CommandError(
                f"Interrupted. What is left of {name} can be searched; run this again to finish.",
                returncode=INTERRUPTED,
            ) from error
        self.stdout.write(
            f"Dropped {name}: {dropped.vectors} vectors,"
            f" {', '.join(dropped.indexes) or 'no index'}. Its documents stay."
        )

    def _ask(self, name: str, contents: str) -> None:
        try:
            answer = input(f"This deletes {contents}. Type the model's name to go on: ")
        except EOFError:
            raise CommandError(
                "Nobody is there to type the name. Nothing was changed: say --noinput."
            ) from None
        except KeyboardInterrupt:
            message = "Interrupted. Nothing was changed."
            raise CommandError(message, returncode=INTERRUPTED) from None
        if answer.strip() != name:
            raise CommandError(f'"{answer}" is not "{name}". Nothing was changed.')

    def _say_shortcomings(self, model: embedding_models.ModelStatus) -> None:
        for shortcoming in model.shortcomings:
            self.stderr.write(self.style.WARNING(shortcoming))


def _table(found: list[embedding_models.ModelStatus]) -> str:
    return table(
        [
            "name", "dim", "default", "index", "next", "vectors", "stale", "missing",
            "recall@10", "size",
        ],
        [
            (
                model.name,
                model.dimensions,
                "yes" if model.is_default else "",
                "exact scan"
                if model.index_method == "exact"
                else f"{model.index_method} {model.index_storage}",
                model.preferred_storage,
                model.vectors,
                model.stale,
                model.missing,
                model.measured_recall,
                None if model.index_bytes is None else filesizeformat(model.index_bytes),
            )
            for model in found
        ],
        right=[1, 5, 6, 7, 8, 9],
    )  # fmt: skip
