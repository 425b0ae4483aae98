#!/usr/bin/env python
"""Django's command line."""

import os
import sys


def main() -> None:
    """Run a command. What the user can mend himself is told in one line, without a traceback."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cartrita.settings")
    if sys.argv[1:2] != ["runserver"]:
        # Loads and builds take their time; the limit is for requests.
        os.environ["DATABASE_STATEMENT_TIMEOUT"] = "0"
    try:
        from django.core.exceptions import ImproperlyConfigured
        from django.core.management import execute_from_command_line
        from django.db import OperationalError
    except ImportError as error:
        sys.exit(
            f"Django cannot be imported ({error}): run `make venv`, then use .venv/bin/python."
        )

    from cartrita_search.errors import SearchError

    try:
        execute_from_command_line(sys.argv)
        sys.stdout.flush()
    except (ImproperlyConfigured, OperationalError, SearchError) as error:
        if "--traceback" in sys.argv:
            raise
        sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).split())}\n")
        sys.exit(getattr(error, "exit_code", 1))
    except BrokenPipeError:
        # Who read this has seen enough, as `| head` has.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
