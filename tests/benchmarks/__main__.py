"""``python -m tests.benchmarks NAME …``: the measurements behind the claims in the docs.

Each runs on an embedded server of its own, with the settings that development
has, in a folder that is removed at the end.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: What a judged folder holds.
JUDGED = (
    "corpus.jsonl.gz",
    "corpus_ids.json",
    "corpus_emb.npy",
    "queries.jsonl",
    "query_ids.json",
    "query_emb.npy",
    "qrels.tsv",
)


def judged_folder(argument: str) -> str:
    """The folder's full path, if all is there that judging by it takes."""
    folder = Path(argument).resolve()
    missing = [file for file in JUDGED if not (folder / file).is_file()]
    if missing:
        raise argparse.ArgumentTypeError(f"{argument} has no {', '.join(missing)}")
    return str(folder)


def main() -> int:
    """Run the benchmarks named; 0 if every target was met, 1 otherwise."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import django

    django.setup()

    from django.conf import settings
    from django.core.management import call_command
    from django.db import connection

    from cartrita.embedded.postgres import EmbeddedPostgres

    from . import (
        dashboard,
        doctor,
        growth,
        import_v1,
        ingest,
        latency,
        locks,
        quality,
        rebuild,
        recording,
        sweep,
    )
    from .peers import benchmark as peers

    benchmarks: dict[str, Callable[..., bool]] = {
        "quality": quality.run,
        "sweep": sweep.run,
        "latency": latency.run,
        "ingest": ingest.run,
        "recording": recording.run,
        "import_v1": import_v1.run,
        "rebuild": rebuild.run,
        "growth": growth.run,
        "locks": locks.run,
        "dashboard": dashboard.run,
        "doctor": doctor.run,
        "peers": peers.run,
    }
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*benchmarks, []], metavar="NAME")
    parser.add_argument(
        "--data",
        nargs="+",
        type=judged_folder,
        metavar="DIR",
        default=[],
        help="peers: judged folders to compare by, instead of the three at hand",
    )
    parser.add_argument(
        "--rows", type=int, help="import_v1, growth, peers: only so many rows, for a first look"
    )
    given = parser.parse_args()
    names = given.names or list(benchmarks)
    options: dict[str, dict[str, Any]] = {
        "import_v1": {"rows": given.rows},
        "growth": {"rows": given.rows},
        "peers": {"rows": given.rows, "data": given.data},
    }

    met = True
    with tempfile.TemporaryDirectory(prefix="cartrita-bench-") as folder:
        settings.EMBEDDED_DIR = Path(folder)
        settings.EMBEDDED_POSTGRES = {}
        settings.DEBUG = False  # or Django would keep a log of every query
        # As with PREPARE_STATEMENTS: what it is compared with is prepared too.
        connection.settings_dict["OPTIONS"] = {"prepare_threshold": 5}
        try:
            call_command("migrate", verbosity=0)
            for name in names:
                print(f"== {name}: {sys.modules[benchmarks[name].__module__].__doc__}")
                met &= benchmarks[name](connection, **options.get(name, {}))
        finally:
            connection.close()
            EmbeddedPostgres.from_settings().stop()
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
