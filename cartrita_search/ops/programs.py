"""PostgreSQL's own programs pg_dump, pg_restore and psql: found, judged by version, run.

They are given a connection string without the password, which is in a file of mode 600
for as long as they run: arguments are anybody's to read.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from django.db import DEFAULT_DB_ALIAS, connections
from psycopg.conninfo import make_conninfo

from ..conf import search_settings
from ..errors import PackageMissing, SearchError

#: Where packages put the programs of one version: Debian, Red Hat, Homebrew, macOS.
INSTALLED = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/*/bin",
    "Library/PostgreSQL/*/bin",
)
#: A version that no program reaches.
NO_LIMIT = 1000
#: Between two looks at how far a program is, in seconds.
POLL_SECONDS = 0.25
#: Not for the programs: secrets, and the encoding, which a dump takes from its database.
_WITHHELD = {"password", "sslpassword", "client_encoding"}


@dataclass(frozen=True)
class Program:
    """One of PostgreSQL's programs, as found."""

    path: str
    #: As it says itself, like "18.6".
    version: str

    @property
    def major(self) -> int:
        """The version's first part."""
        return int(self.version.split(".")[0])


def find_program(name: str, server: int, *, using: str = DEFAULT_DB_ALIAS) -> Program:
    """The program of the server's major version ``server``, or else the next newer one.

    An older one refuses the server, and one of 17 or newer sets ``transaction_timeout``,
    which older servers do not know: what it dumps could not be restored there. Raises
    `PackageMissing` where there is none.
    """
    found = [program for path in _candidates(name, using) if (program := _judged(path))]
    newest = 16 if server <= 16 else NO_LIMIT
    usable = [program for program in found if server <= program.major <= newest]
    if usable:
        return min(usable, key=lambda program: program.major)
    known = ", ".join(f"{each.path} is {each.version}" for each in found) or "none was found"
    raise PackageMissing(
        f"The server is PostgreSQL {server}, which needs a {name} of version {server}"
        f"{' or newer' if newest == NO_LIMIT else f' to {newest}' if server < newest else ''};"
        f" {known}.",
        f"Nothing was changed. Install Debian's package postgresql-client-{server} (from"
        " apt.postgresql.org), or set POSTGRES_BIN to the folder that holds it.",
    )


def _candidates(name: str, using: str) -> list[str]:
    if folder := search_settings().postgres_bin:
        return [str(Path(folder) / name)]
    # The embedded engine's client has a folder; Django's own is a bare name.
    engines = Path(connections[using].client.executable_name or "").parent
    folders = [str(engines)] if engines.is_absolute() else []
    on_path = shutil.which(name)
    installed = [folder for pattern in INSTALLED for folder in sorted(Path("/").glob(pattern))]
    paths = [
        *(f"{folder}/{name}" for folder in folders),
        *([on_path] if on_path else []),
        *(f"{folder}/{name}" for folder in installed),
    ]
    return [path for path in dict.fromkeys(paths) if os.access(path, os.X_OK)]


def _judged(path: str) -> Program | None:
    """The program with its version; None where it does not run, or is another program."""
    try:
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, check=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"\(PostgreSQL\) (\d+[\w.]*)", said)
    return Program(path, re.match(r"[\d.]*", version[1])[0]) if version else None  # type: ignore[index]


@contextmanager
def connection_string(parameters: Mapping[str, Any], application_name: str) -> Iterator[str]:
    """A conninfo string without the password, which is in a file for as long as the block runs."""
    given = {
        key: value
        for key, value in parameters.items()
        if key not in _WITHHELD and value is not None
    }
    given["application_name"] = application_name
    with tempfile.TemporaryDirectory(prefix="cartrita-") as folder:
        if password := parameters.get("password"):
            passfile = Path(folder) / "pgpass"
            passfile.touch(mode=0o600)
            escaped = str(password).replace("\\", "\\\\").replace(":", "\\:")
            passfile.write_text(f"*:*:*:*:{escaped}\n", encoding="utf-8")
            given["passfile"] = str(passfile)
        yield make_conninfo(**given)


def run(
    program: Program,
    arguments: list[str],
    failed: Callable[[str], SearchError],
    *,
    poll: Callable[[], object] | None = None,
    output: IO[bytes] | int = subprocess.DEVNULL,
) -> None:
    """Run it to its end, and raise ``failed(what it said)`` if that is not a good one.

    ``poll`` is called now and then in the meantime. Whatever interrupts this ends the
    program too.
    """
    # PGPASSWORD would come before the file with the password of the settings.
    environment = {key: value for key, value in os.environ.items() if key != "PGPASSWORD"}
    if not any("passfile=" in argument for argument in arguments):
        environment = dict(os.environ)
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                [program.path, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=said,
                env=environment,
            )
        except OSError as error:
            raise failed(f"{program.path} cannot be run: {error.strerror}") from error
        try:
            _wait(process, poll)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        if process.returncode:
            said.seek(0)
            text = said.read().decode(errors="replace")
            raise failed(_complaint(Path(program.path).name, process.returncode, text))


def _wait(process: subprocess.Popen[bytes], poll: Callable[[], object] | None) -> None:
    while True:
        try:
            process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if poll is not None:
                poll()
        else:
            return


def _complaint(name: str, returncode: int, text: str) -> str:
    """What a program says of its failure, as one line."""
    if returncode < 0:
        return f"{name} was ended by {signal.strsignal(-returncode) or f'signal {-returncode}'}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = next((n for n, line in enumerate(lines) if re.search(r"\b(error|ERROR):", line)), 0)
    # What else it says may be a row of somebody's data.
    told = lines[first : first + 1] + [
        line for line in lines[first + 1 :] if re.search(r"\b(detail|hint|DETAIL|HINT):", line)
    ]
    clear = [re.sub(r"^[\w/.-]+: (error|detail|hint): ", "", line) for line in told[:3]]
    return f"{name}: {' '.join(clear)}".rstrip(".") if clear else f"{name} failed"
