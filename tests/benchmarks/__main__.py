"""``python -m tests.benchmarks NAME …``: the measurements behind the claims in the docs.

Each runs on an embedded server of its own, with the settings that development
has, in a folder that is removed at the end.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

#: The module of each, whose run() prints its table and tells whether its targets were met.
BENCHMARKS = {
    "quality": ".quality",
    "sweep": ".sweep",
    "latency": ".latency",
    "ingest": ".ingest",
    "growth": ".growth",
    "rebuild": ".rebuild",
    "cache": ".cache",
    "recording": ".recording",
    "doctor": ".doctor",
    "dashboard": ".dashboard",
    "locks": ".locks",
    "import_v1": ".import_v1",
    "restore": ".restore",
    "workers": ".workers",
    "pgbouncer": ".pgbouncer",
    "load": ".load",
    "capacity": ".capacity",
    "peers": ".peers.benchmark",
}

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
    from cartrita.embedded.redis import EmbeddedRedis

    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], metavar="NAME")
    parser.add_argument(
        "--data",
        nargs="+",
        type=judged_folder,
        metavar="DIR",
        default=[],
        help="peers: judged folders to compare by, instead of the three at hand",
    )
    parser.add_argument(
        "--rows",
        type=int,
        help="import_v1, growth, peers, capacity: only so many rows, for a first look",
    )
    parser.add_argument("--seconds", type=int, help="load: only so long, for a first look (300)")
    given = parser.parse_args()
    names = given.names or list(BENCHMARKS)
    options: dict[str, dict[str, Any]] = {
        "import_v1": {"rows": given.rows},
        "growth": {"rows": given.rows},
        "capacity": {"rows": given.rows},
        "load": {"seconds": given.seconds},
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
                module = import_module(BENCHMARKS[name], __package__)
                print(f"== {name}: {module.__doc__}")
                met &= module.run(connection, **options.get(name, {}))
        finally:
            connection.close()
            EmbeddedPostgres.from_settings().stop()
            EmbeddedRedis.from_settings().stop()
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
