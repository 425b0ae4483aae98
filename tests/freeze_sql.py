"""``make freeze``: the SHA-256 of every SQL file, written down when it is released.

A released file is in databases everywhere, so it never changes again: a new body
is a new file. ``sql/frozen.txt`` has the form of ``sha256sum``, which can check
it too, and test_architecture.py does.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

SQL_ROOT = Path(__file__).resolve().parent.parent / "cartrita_search" / "sql"
FROZEN = "frozen.txt"


def hashes(root: Path) -> dict[str, str]:
    """The SHA-256 of each SQL file below ``root``, by its path there."""
    return {
        # As text: a checkout with other line endings has the same files.
        path.relative_to(root).as_posix(): hashlib.sha256(
            path.read_text("utf-8").encode()
        ).hexdigest()
        for path in sorted(root.rglob("*.sql"))
    }


def read_frozen(root: Path) -> dict[str, str]:
    """What ``frozen.txt`` says; nothing as long as nothing is released."""
    file = root / FROZEN
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    return {path: digest for digest, path in (line.split("  ", 1) for line in lines)}


def changed(root: Path) -> list[str]:
    """The released files that are not what they were, or are gone."""
    present = hashes(root)
    return [path for path, digest in read_frozen(root).items() if present.get(path) != digest]


def unlisted(root: Path, migrations: Mapping[str, Collection[str]]) -> list[str]:
    """Files that a released migration runs, and that were not released with it.

    ``migrations`` names the files of each. One is released when any file of it is.
    """
    frozen = read_frozen(root)
    return [
        path
        for files in migrations.values()
        if any(path in frozen for path in files)
        for path in files
        if path not in frozen
    ]


def freeze(root: Path, *, force: bool = False) -> int:
    """Write down every file, and return how many are new.

    Raises ValueError, and writes nothing, if a released one has changed, unless
    ``force``.
    """
    if (wrong := changed(root)) and not force:
        raise ValueError(
            f"released, and changed since: {', '.join(wrong)}. Nothing was written. "
            "Put the change into a new file (.v2.sql), run by a new migration."
        )
    before, present = read_frozen(root), hashes(root)
    lines = [f"{digest}  {path}\n" for path, digest in present.items()]
    (root / FROZEN).write_text("".join(lines), encoding="utf-8")
    return len(present.keys() - before.keys())


def main() -> None:
    """Freeze what is in the working tree."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--force", action="store_true", help="also what was released and changed")
    try:
        new = freeze(SQL_ROOT, force=parser.parse_args().force)
    except ValueError as error:
        sys.exit(str(error))
    sys.stdout.write(f"{new} SQL files added to {FROZEN}\n")


if __name__ == "__main__":
    main()
