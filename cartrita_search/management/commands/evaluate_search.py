"""``manage.py evaluate_search``: how good the searches are, and which weights are best."""

import json
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from cartrita_search.errors import SearchError


class Command(BaseCommand):
    """See ``help``."""

    help = (
        "Measure vector, keyword and hybrid search by judged queries: nDCG@10, recall@100, MRR@10."
        " DIR is a BEIR-style folder (corpus.jsonl, queries.jsonl, qrels.tsv; with corpus_emb.npy"
        " and query_emb.npy or else embedded); it is evaluated in a scratch database of its own"
        " that is dropped at the end. With --live the documents that are there are searched, and"
        " nothing is written. Exit status: 0 evaluated; 1 refused, 130 interrupted (nothing is"
        " left behind either way); 2 the command line cannot be read."
    )
    requires_migrations_checks = True

    def add_arguments(self, parser: CommandParser) -> None:
        """What to evaluate, and what to say about it."""
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="judged collection")
        what.add_argument(
            "--live",
            type=Path,
            metavar="FILE",
            help="judgements on the live documents: a .jsonl file of query, source_table, "
            "source_id, grade and, where wanted, chunk_index and user; or a .tsv file with these "
            "columns, named in its first line",
        )
        parser.add_argument(
            "--sweep", action="store_true", help="try all weights, and say which are best"
        )
        parser.add_argument(
            "--weights",
            metavar="VECTOR,KEYWORD",
            help="the present weights (default: the site's, else 0.7,0.3)",
        )
        parser.add_argument(
            "--plot", type=Path, metavar="FILE", help="draw the sweep to a .png or .svg file"
        )
        parser.add_argument("--seed", type=int, default=0, help="of the resampling (default: 0)")
        parser.add_argument("--keep", action="store_true", help="leave the scratch database")
        parser.add_argument("--json", action="store_true", help="print the outcome as JSON")

    def handle(self, *args: Any, folder: Path | None, **options: Any) -> None:
        """Evaluate and print."""
        try:
            from cartrita_search import evaluation

            plot: Path | None = options["plot"]
            chosen: dict[str, Any] = {
                "weights": _weights(options["weights"]),
                "sweep": options["sweep"] or plot is not None,
                "seed": options["seed"],
            }
            if plot is not None:
                evaluation.check_plot(plot)
            if folder is not None:
                outcome = evaluation.evaluate_collection(folder, keep=options["keep"], **chosen)
            else:
                outcome = evaluation.evaluate_live(options["live"], **chosen)
            self.stdout.write(
                json.dumps(outcome.as_dict(), indent=2) if options["json"] else str(outcome)
            )
            if plot is not None and outcome.sweep is not None:
                evaluation.draw(outcome.sweep, outcome.name, plot)
        except SearchError as error:
            raise CommandError(str(error)) from error
        except BrokenPipeError:
            raise  # whoever read the output has seen enough
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}.") from error
        except KeyboardInterrupt as error:
            raise CommandError("Interrupted; nothing is left behind.", returncode=130) from error
        if folder is not None and options["keep"]:
            self.stderr.write(f"Kept: the database {outcome.database}.")


def _weights(pair: str | None) -> tuple[float, float] | None:
    if pair is None:
        return None
    try:
        vector_weight, keyword_weight = map(float, pair.split(","))
    except ValueError as error:
        raise CommandError(f"--weights takes two numbers, as in 0.7,0.3; not {pair!r}.") from error
    return vector_weight, keyword_weight
