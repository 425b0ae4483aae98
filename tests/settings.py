"""Settings for the tests: development's, whatever this machine's environment says.

A developer's .env or DATABASE_URL must never decide where tests write.
"""

import os
from pathlib import Path

from environ import Env

Env.ENVIRON = {"ENV_FILE": os.devnull, "DEBUG": "true"}

from cartrita.settings import *  # noqa: E402, F403

# conftest.py puts each run's own folder here; without it nothing can start.
EMBEDDED_DIR = Path(os.devnull)

# The run's data are thrown away at its end, so nothing is gained by making
# them survive a crash of the machine.
EMBEDDED_POSTGRES = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "128MB",
    "max_prepared_transactions": "5",  # tests/test_stuck_queries.py leaves one behind
}

# The default hasher takes a tenth of a second for each user made.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

# Rows of searches, written by a thread of their own, would come between one test
# and the next; tests/test_metrics.py turns this on.
# A cached answer would hide what a test has just broken; tests/test_cache.py turns it on.
CARTRITA_SEARCH |= {"RECORD_SEARCHES": False, "CACHE_SECONDS": 0}  # noqa: F405
