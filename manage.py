#!/usr/bin/env python
"""Django's command line."""

import os
import sys

#: insufficient_privilege, read_only_sql_transaction: as of a replica.
REFUSED = {"42501", "25006"}


def main() -> None:
    """Run a command. What the user can mend himself is told in one line, without a traceback."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cartrita.settings")
    if sys.argv[1:2] != ["runserver"]:
        # Loads and builds take their time; the limit is for requests.
        os.environ["DATABASE_STATEMENT_TIMEOUT"] = "0"
    try:
        from django.core.exceptions import ImproperlyConfigured
        from django.core.management import execute_from_command_line
        from django.db import Error, InterfaceError, OperationalError
    except ImportError as error:
        sys.exit(
            f"Django cannot be imported ({error}): run `make venv`, then use .venv/bin/python."
        )

    from cartrita_search.errors import SearchError

    try:
        try:
            execute_from_command_line(sys.argv)
        finally:
            # Not left to the interpreter's end, which tells a closed pipe by a traceback.
            sys.stdout.flush()
    except (ImproperlyConfigured, SearchError) as error:
        if "--traceback" in sys.argv:
            raise
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(getattr(error, "exit_code", 1))
    except Error as error:
        refused = getattr(error.__cause__, "sqlstate", None) in REFUSED
        lost = isinstance(error, (OperationalError, InterfaceError))
        if "--traceback" in sys.argv or not (refused or lost):
            raise
        # The server's own words without the statement; libpq's have several lines.
        diagnostic = getattr(error.__cause__, "diag", None)
        said = getattr(diagnostic, "message_primary", None) or str(error)
        said = " ".join(said.split()).rstrip(".?")
        sys.stderr.write(
            f"{type(error).__name__}: {said}. What was not committed was not stored."
            " The server and the role are those of DATABASE_URL.\n"
        )
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read has seen enough, as `head` has.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
