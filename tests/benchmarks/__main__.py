"""``python -m tests.benchmarks NAME …``: the measurements behind the claims in the docs.

Each runs on an embedded server of its own, with the settings that development
has, in a folder that is removed at the end.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Run the benchmarks named; 0 if every target was met, 1 otherwise."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import django

    django.setup()

    from django.conf import settings
    from django.core.management import call_command
    from django.db import connection

    from cartrita.embedded.postgres import EmbeddedPostgres

    from . import ingest, latency, quality, sweep

    benchmarks = {
        "quality": quality.run,
        "sweep": sweep.run,
        "latency": latency.run,
        "ingest": ingest.run,
    }
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*benchmarks, []], metavar="NAME")
    names = parser.parse_args().names or list(benchmarks)

    met = True
    with tempfile.TemporaryDirectory(prefix="cartrita-bench-") as folder:
        settings.EMBEDDED_DIR = Path(folder)
        settings.EMBEDDED_POSTGRES = {}
        settings.DEBUG = False  # or Django would keep a log of every query
        try:
            call_command("migrate", verbosity=0)
            for name in names:
                print(f"== {name}: {sys.modules[benchmarks[name].__module__].__doc__}")
                met &= benchmarks[name](connection)
        finally:
            connection.close()
            EmbeddedPostgres.from_settings().stop()
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
