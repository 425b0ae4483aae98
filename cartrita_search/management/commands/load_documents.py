"""``manage.py load_documents``: documents, and vectors if there are any, from a file."""

import json
import sys
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from cartrita_search.errors import SearchError
from cartrita_search.files import (
    NAMES,
    DocumentFile,
    FileOptions,
    LoadReport,
    load_file,
    parse_columns,
)
from cartrita_search.ingest import BATCH_SIZE
from cartrita_search.ops.vector_indexes import finish_load
from cartrita_search.terminal import progress

READING = ("source", "format", "encoding", "delimiter", "tag_separator")
STORING = ("model", "on_error", "index", "prune", "dry_run", "batch_size")


class Command(BaseCommand):
    """See ``help``."""

    help = (
        "Store the documents of a JSON Lines or CSV file, gzipped or not. A line has: "
        + "; ".join(" or ".join(names) for names in NAMES.values())
        + ". Only id is required, and a source_table where --source names none. A document"
        " without an embedding awaits it. What is stored already is not written again."
        " Exit status: 0 all stored; 1 nothing could be done; 2 the command line cannot be"
        " read; 3 some lines were refused, the rest is stored; 130 interrupted."
    )
    requires_migrations_checks = True

    def add_arguments(self, parser: CommandParser) -> None:
        """The file, how to read it, and the options of `files.load_file`."""
        add = parser.add_argument
        add("file", help="- is standard input")
        add("--source", metavar="TABLE", help="the source_table of every document")
        add(
            "--format",
            choices=("auto", "jsonl", "csv"),
            default="auto",
            help="default: by the name; .jsonl .ndjson .csv .tsv, standard input is jsonl",
        )
        add(
            "--columns",
            metavar="FIELD=COLUMN,…",
            default="",
            help="CSV: which column is which field, where the names differ, as in"
            " id=article_no,title=headline,content=body,owner=user,tags=labels",
        )
        add("--encoding", default="utf-8", help="default: %(default)s")
        add("--delimiter", metavar="CHAR", help="CSV: default a comma, for .tsv a tab")
        add("--tag-separator", metavar="TEXT", default=",", help="CSV: default a comma")
        add("--model", metavar="NAME", help="of the vectors (default: the default model)")
        add(
            "--index",
            choices=("auto", "keep", "rebuild"),
            default="auto",
            help="rebuild: load without the vector index and build it once, which for many"
            " vectors is several times faster; auto chooses",
        )
        add(
            "--on-error",
            choices=("report", "raise"),
            default="report",
            help="raise: any bad line undoes the whole load",
        )
        add(
            "--prune",
            action="store_true",
            help="delete documents of the file's sources that the file does not hold;"
            " not if any line was refused",
        )
        add("--batch-size", type=int, default=BATCH_SIZE, help="default: %(default)s")
        add("--dry-run", action="store_true", help="read everything, write nothing")
        add("--json", action="store_true", help="print the outcome as JSON")

    def handle(self, *args: Any, file: str, **options: Any) -> None:
        """Load and print."""
        reading = {name: options[name] for name in READING}
        storing = {name: options[name] for name in STORING}
        try:
            columns = parse_columns(options["columns"])
            document_file = DocumentFile(file, FileOptions(columns=columns, **reading))
            lines = document_file.count_lines()
            with progress(lines or 0, file, sys.stderr) as advance:
                report = load_file(
                    document_file,
                    expected=lines,
                    progress=advance if lines else None,
                    finish=finish_load,
                    **storing,
                )
        except SearchError as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt as error:
            message = "Interrupted. Run it again: what is stored already is not written twice."
            raise CommandError(message, returncode=130) from error
        if options["json"]:
            self.stdout.write(json.dumps(asdict(report), indent=2))
        else:
            self._print(report, options)
        if report.refused:
            raise CommandError(f"{report.refused} refused.", returncode=3)

    def _print(self, report: LoadReport, options: dict[str, Any]) -> None:
        for refusal in report.refusals:
            self.stderr.write(refusal.message)
        if options["dry_run"]:
            said = [f"A dry run: {report.documents} could be read, {report.refused} not."]
        else:
            said = [
                f"{report.inserted} inserted, {report.updated} updated, "
                f"{report.unchanged} unchanged, {report.refused} refused."
            ]
        if report.duplicates:
            said.append(f"{report.duplicates} were replaced by a later line with the same key.")
        if report.new_model is not None:
            said.append(f'Its vectors are the first of model "{report.new_model}".')
        if report.passed_over:
            said.append(f"Passed over: {', '.join(map(repr, report.passed_over))}.")
        if report.pruned is not None:
            said.append(f"{report.pruned} deleted, which the file does not hold.")
        elif options["prune"] and report.refused:
            said.append("Nothing was deleted: a refused line may hold any document.")
        said += [report.index] if report.index else []
        self.stdout.write("\n".join(said))
