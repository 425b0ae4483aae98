"""``manage.py rebuild_vector_indexes``: plan, build, measure and swap vector indexes."""

import json
import sys
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.template.defaultfilters import filesizeformat

from cartrita_search.errors import SearchError
from cartrita_search.ops import vector_indexes
from cartrita_search.ops.vector_indexes import IndexStatus, Plan, RebuildReport, Wishes
from cartrita_search.terminal import phases, stop_on_signals, table

MISSED = 4
INTERRUPTED = 130

WISHES = (
    "method", "storage", "m", "ef_construction", "lists", "target_recall",
    "maintenance_work_mem", "parallel_workers",
)  # fmt: skip


class Command(BaseCommand):
    """See ``help``."""

    help = (
        "Build the vector index that each model's plan calls for beside the one in place, measure"
        " its recall@10, tune the search width to the target, and swap it in, while searches and"
        " writers go on. Killed anywhere, the next run finishes it or clears it away. Exit status:"
        " 0 done, or nothing to do; 1 refused or failed, with the reason, and the index in place"
        " goes on serving; 2 the command line cannot be read; 4 the target recall was not reached,"
        " and the index in place goes on serving; 75 another rebuild, or somebody's transaction,"
        " is in the way: try again later; 130 interrupted: models not listed are as they were."
    )
    requires_migrations_checks = True

    def add_arguments(self, parser: CommandParser) -> None:
        """What to build, when, and how."""
        add = parser.add_argument
        add(
            "--model",
            nargs="+",
            action="extend",
            default=[],
            metavar="NAME",
            help="default: every model",
        )
        add("--method", choices=("auto", "hnsw", "ivfflat", "exact"), default="auto")
        add(
            "--storage",
            choices=("auto", "vector", "halfvec", "bit"),
            default="auto",
            help="for this run; lasting: manage.py embedding_models storage",
        )
        add("--m", type=int, metavar="N", help="HNSW: links of a node (default: search_settings)")
        add("--ef-construction", type=int, metavar="N", help="HNSW: candidates while building")
        add("--lists", type=int, metavar="N", help="IVFFlat (default: a list for 1000 vectors)")
        add(
            "--target-recall",
            type=float,
            metavar="SHARE",
            help="recall@10 to tune to; stored with the model (default: the model's own)",
        )
        add(
            "--maintenance-work-mem",
            metavar="SIZE",
            help="like 2GB: memory that an HNSW graph may take (default: the budget in"
            " search_settings, or the server's setting)",
        )
        add("--parallel-workers", type=int, metavar="N", help="0 needs no shared memory")
        add("--if-needed", action="store_true", help="only where a reason is found: see --status")
        add("--no-concurrently", action="store_true", help="somewhat faster; writers wait")
        add(
            "--wait",
            type=float,
            default=30.0,
            metavar="SECONDS",
            help="for another rebuild to end (default: %(default)g)",
        )
        add("--dry-run", action="store_true", help="say what would be done, and change nothing")
        add("--plan", action="store_true", help="only print which index each model should have")
        add("--status", action="store_true", help="only print what each model has")
        add("--json", action="store_true", help="print the outcome as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do it, and print what was done."""
        try:
            wishes = Wishes(**{name: options[name] for name in WISHES})
            if options["status"]:
                found = vector_indexes.statuses(models=options["model"])
                self._print(options, [asdict(status) for status in found], _statuses(found))
            elif options["plan"]:
                plans = vector_indexes.plans(options["model"], wishes=wishes)
                self._print(options, [asdict(plan) for plan in plans], _plans(plans))
            else:
                self._rebuild(wishes, options)
        except SearchError as error:
            raise CommandError(str(error), returncode=error.exit_code) from error
        except KeyboardInterrupt as error:
            raise CommandError(
                "Interrupted at once. The next run clears away what is left.",
                returncode=INTERRUPTED,
            ) from error

    def _rebuild(self, wishes: Wishes, options: dict[str, Any]) -> None:
        with stop_on_signals(sys.stderr) as stop, phases(sys.stderr) as show:
            report = vector_indexes.rebuild(
                options["model"],
                wishes=wishes,
                if_needed=options["if_needed"],
                dry_run=options["dry_run"],
                concurrently=not options["no_concurrently"],
                wait=options["wait"],
                stop=stop,
                progress=lambda phase: show(phase.name, phase.done, phase.total, phase.unit),
                say=self.stderr.write,
            )
        self._print(options, asdict(report), _outcomes(report))
        if not options["json"]:
            for outcome in report.outcomes:
                for note in outcome.notes:
                    self.stderr.write(self.style.WARNING(note))
        if report.interrupted:
            raise CommandError(
                "Interrupted. What is listed is finished; nothing else was changed.",
                returncode=INTERRUPTED,
            )
        if report.missed:
            names = ", ".join(outcome.plan.model_name for outcome in report.missed)
            raise CommandError(f"Target recall not reached: {names}.", returncode=MISSED)

    def _print(self, options: dict[str, Any], data: object, text: str) -> None:
        self.stdout.write(json.dumps(data, indent=2, default=str) if options["json"] else text)


NONE = "No embedding model is registered: nothing to index."


def _outcomes(report: RebuildReport) -> str:
    lines = []
    for outcome in report.outcomes:
        lines.append(str(outcome))
        lines += [f"  because: {reason}" for reason in outcome.reasons]
    return "\n".join(lines) or ("" if report.interrupted else NONE)


def _plans(plans: list[Plan]) -> str:
    if not plans:
        return NONE
    rows = [
        (
            plan.model_name,
            plan.row_count,
            plan.dimensions,
            plan,
            filesizeformat(plan.estimated_bytes),
            filesizeformat(plan.budget_bytes),
        )
        for plan in plans
    ]
    headers = ["model", "vectors", "dim", "index", "size", "budget"]
    return "\n".join(
        [
            table(headers, rows, right=[1, 2, 4, 5]),
            *(f"{plan.model_name}: {plan.reason}" for plan in plans),
        ]
    )


def _statuses(found: list[IndexStatus]) -> str:
    if not found:
        return NONE
    rows = [
        (
            status.model,
            "exact scan"
            if status.index_method == "exact"
            else f"{status.index_method} {status.index_storage} {status.parameters}",
            {None: "-", True: "yes", False: "NO"}[status.is_valid],
            None if status.size_bytes is None else filesizeformat(status.size_bytes),
            status.row_count,
            status.rows_since_build,
            status.measured_recall,
            status.ef_search or status.probes,
            None if status.built_at is None else f"{status.built_at:%Y-%m-%d %H:%M}",
            status.built_by,
        )
        for status in found
    ]
    headers = [
        "model", "index", "valid", "size", "rows", "since", "recall", "width", "built", "by",
    ]  # fmt: skip
    return "\n".join(
        [
            table(headers, rows, right=[3, 4, 5, 6, 7], width=120),
            *(f"{status.model}: {need}" for status in found for need in status.needs),
        ]
    )
