"""A backup as files: its format, its manifest, and whether it is whole.

Beside ``name.dump`` lies ``name.dump.json``, the manifest, which says what must come out of
it. A dump that somebody made with pg_dump alone has none, and fewer checks are possible.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import RestoreRefused, SearchError
from .database_properties import PROPERTIES
from .programs import Program, run

#: Called with what is being done, how much of it is done, how much there is (None: not
#: known), and in which unit: `terminal.phases` shows it.
Progress = Callable[[str, int, int | None, str], object]

#: The version of the manifest's own form.
MANIFEST_FORMAT = 1
MIB = 1 << 20

FORMATS = ("custom", "directory", "tar", "plain")
_PLAIN_HEAD = b"-- PostgreSQL database dump\n"
_PLAIN_END = b"-- PostgreSQL database dump complete"
#: The comment above an object, in which nothing is quoted.
_PLAIN_ENTRY = re.compile(
    rb"-- (?:Data for )?Name: (?P<name>.+); Type: (?P<kind>TABLE DATA|EXTENSION|DATABASE);"
    rb" Schema: (?P<schema>.+); Owner: "
)
#: Bytes at the end of a plain dump in which its last line stands.
_TAIL = 4096

_NOT_TOUCHED = "Nothing was touched."


@dataclass(frozen=True)
class Manifest:
    """What a backup was taken of, and what must come out of it."""

    format: int
    #: The database's name, and when the snapshot was taken (ISO 8601, UTC).
    database: str
    taken_at: str
    #: Versions, like "18.6".
    server_version: str
    pg_dump_version: str
    #: Size of the database in bytes, indexes included.
    database_bytes: int
    #: Version by name.
    extensions: dict[str, str]
    #: Django's applied migrations, as "app.name".
    migrations: list[str]
    #: Rows by table, as "schema.table", in the snapshot that was dumped.
    tables: dict[str, int]
    #: Roles that objects belong to or are granted to.
    roles: list[str]
    #: `database_properties` of the database.
    properties: dict[str, Any]
    #: Bytes and SHA-256 of each file, by its path within the dump ("." for a single file).
    files: dict[str, dict[str, Any]]

    @property
    def rows(self) -> int:
        """All rows."""
        return sum(self.tables.values())

    @property
    def bytes(self) -> int:
        """The dump's size."""
        return sum(file["bytes"] for file in self.files.values())

    def to_json(self) -> str:
        """As it is written."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


@dataclass(frozen=True)
class Contents:
    """What an archive itself says it holds, in its table of contents."""

    #: "" where the format does not tell.
    database: str
    server_version: str
    #: One line an object: type, schema, name and owner.
    entries: list[str]
    #: "schema table owner" of each table that has data in it; any may hold a space.
    tables: set[str]
    extensions: set[str]

    def beyond(self, tables: Iterable[str]) -> list[str]:
        """Its tables that are none of these, which are named as "schema.table"."""
        # Where a name ends cannot be told, so all is compared in one form.
        known = tuple(f"{table}.".replace(" ", ".") for table in tables)
        return sorted(
            table for table in self.tables if not table.replace(" ", ".").startswith(known)
        )


def manifest_path(path: Path) -> Path:
    """Where the manifest of the dump at ``path`` lies."""
    return path.with_name(path.name + ".json")


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of the dump at ``path``, or None where there is none.

    Raises `RestoreRefused` for one that cannot be read, or of a newer form.
    """
    file = manifest_path(path)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        newer = found["format"] > MANIFEST_FORMAT
        manifest = None if newer else Manifest(**{f.name: found[f.name] for f in fields(Manifest)})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(file) from error
    if newer:
        raise RestoreRefused(
            f"The backup's manifest {file} is of a newer version of this package.",
            f"{_NOT_TOUCHED} Restore with that version.",
        )
    if manifest is None or not _has_its_form(manifest):
        raise _unreadable(file)
    return manifest


def _unreadable(file: Path) -> RestoreRefused:
    return RestoreRefused(
        f"The backup's manifest {file} cannot be read.",
        f"{_NOT_TOUCHED} Another backup may be whole; without that file the dump is"
        " restored with fewer checks.",
    )


def _has_its_form(manifest: Manifest) -> bool:
    """Whether what is read of it is there: bits of this file may have flipped as well."""
    texts = ("database", "taken_at", "server_version", "pg_dump_version")
    return (
        all(isinstance(getattr(manifest, name), str) for name in texts)
        and isinstance(manifest.database_bytes, int)
        and isinstance(manifest.files, dict)
        and all(
            isinstance(file, dict)
            and isinstance(file.get("bytes"), int)
            and isinstance(file.get("sha256"), str)
            for file in manifest.files.values()
        )
        and isinstance(manifest.tables, dict)
        and all(isinstance(rows, int) for rows in manifest.tables.values())
        and isinstance(manifest.properties, dict)
        and manifest.properties.keys() == PROPERTIES
        and all(isinstance(each, list) for each in (manifest.roles, manifest.migrations))
        and all(isinstance(each, str) for each in manifest.roles + manifest.migrations)
    )


def dump_format(path: Path) -> str:
    """One of `FORMATS`. Raises `RestoreRefused` for what is no dump of one database."""
    try:
        if path.is_dir():
            if (path / "toc.dat").is_file():
                return "directory"
            raise RestoreRefused(
                f"{path} is a folder, and no backup in directory format.",
                f"{_NOT_TOUCHED} Name the backup itself.",
            )
        with path.open("rb") as file:
            head = file.read(_TAIL)
    except OSError as error:
        raise RestoreRefused(
            f"There is no backup at {path}: {error.strerror}.", f"{_NOT_TOUCHED}{_others(path)}"
        ) from error
    if not head:
        raise RestoreRefused(f"The backup {path} is empty.", f"{_NOT_TOUCHED} Take another one.")
    if head.startswith(b"PGDMP"):
        return "custom"
    if head[257:262] == b"ustar":
        return "tar"
    if _PLAIN_HEAD in head:
        return "plain"
    what = "is no backup made by pg_dump"
    if b"-- PostgreSQL database cluster dump" in head:
        what = "is of a whole server (pg_dumpall); a backup of one database is needed"
    elif head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")):
        what = "is compressed as a whole; it must be unpacked first"
    raise RestoreRefused(f"{path} {what}.", _NOT_TOUCHED)


def _others(path: Path) -> str:
    """The backups beside where none is."""
    pattern = f"{glob.escape(path.stem)}.*{glob.escape(path.suffix)}"
    found = sorted(path.parent.glob(pattern)) if path.suffix else []
    return f" There is: {', '.join(map(str, found))}." if found else ""


def dump_files(path: Path) -> dict[str, Path]:
    """The dump's files by their path within it."""
    if not path.is_dir():
        return {".": path}
    return {
        str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()
    }


def digest(files: dict[str, Path], advance: Callable[[int], object]) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of each file."""
    found = {}
    for name, file in files.items():
        checksum, size = hashlib.sha256(), 0
        with file.open("rb") as opened:
            while chunk := opened.read(MIB):
                checksum.update(chunk)
                size += len(chunk)
                advance(len(chunk))
        found[name] = {"bytes": size, "sha256": checksum.hexdigest()}
    return found


def check_against(manifest: Manifest, path: Path, progress: Progress) -> None:
    """Raise `RestoreRefused` unless the dump is to the byte what the manifest says."""
    files = dump_files(path)
    sizes = {name: file.stat().st_size for name, file in files.items()}
    for name, file in manifest.files.items():
        if sizes.get(name) != file["bytes"]:
            raise RestoreRefused(
                f"The backup {path} is not whole: {_named(path, name)} has"
                f" {sizes.get(name, 0)} bytes instead of {file['bytes']}.",
                f"{_NOT_TOUCHED} Use another backup.",
            )
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress("Checking the backup", done // MIB, manifest.bytes // MIB, "MiB")

    found = digest({name: files[name] for name in manifest.files}, advance)
    for name, file in manifest.files.items():
        if found[name]["sha256"] != file["sha256"]:
            raise RestoreRefused(
                f"The backup {path} is damaged: the SHA-256 of {_named(path, name)} is not the"
                " one in its manifest.",
                f"{_NOT_TOUCHED} Use another backup.",
            )


def _named(path: Path, name: str) -> str:
    return path.name if name == "." else name


def read_back(path: Path, pg_restore: Program, failed: Callable[[str], SearchError]) -> None:
    """Read an archive to its end; a table of contents alone is whole in half a file too."""
    run(pg_restore, ["--file", os.devnull, str(path)], failed)


def check_plain(path: Path) -> Contents:
    """Raise `RestoreRefused` for a plain dump that lacks its end or goes elsewhere.

    Otherwise what could be read of it.
    """
    version = ""
    tables: set[str] = set()
    extensions: set[str] = set()
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _TAIL))
        if _PLAIN_END not in file.read():
            raise RestoreRefused(
                f"The backup {path} is not whole: its last line is missing.",
                f"{_NOT_TOUCHED} Use another backup.",
            )
        file.seek(0)
        for line in file:
            named = _PLAIN_ENTRY.match(line)
            kind = named["kind"] if named else b""
            # Rows and function bodies may hold any text; what goes elsewhere does so before them.
            if kind == b"DATABASE" or (not tables and line.startswith(b"\\connect ")):
                raise RestoreRefused(
                    f"The backup {path} names a database by itself (pg_dump --create).",
                    f"{_NOT_TOUCHED} Remove its lines CREATE DATABASE, DROP DATABASE, ALTER"
                    " DATABASE and \\connect, or take a dump without --create.",
                )
            if found := re.match(rb"-- Dumped from database version ([\d.]+)", line):
                version = found[1].decode()
            elif named and kind == b"TABLE DATA":
                tables.add(f"{named['schema'].decode()} {named['name'].decode()} ")
            elif named and kind == b"EXTENSION":
                extensions.add(named["name"].decode())
    return Contents("", version, [], tables, extensions)


def contents(path: Path, pg_restore: Program, failed: Callable[[str], SearchError]) -> Contents:
    """The table of contents of an archive."""
    listed = _listing(path, pg_restore, failed)
    head = dict(re.findall(r"^; +([\w ]+): (.*)$", listed, re.MULTILINE))
    entries = re.findall(r"^\d+; \d+ \d+ (.*)$", listed, re.MULTILINE)
    extensions = [re.match(r"EXTENSION - (\S+)", entry) for entry in entries]
    return Contents(
        head.get("dbname", ""),
        head.get("Dumped from database version", ""),
        entries,
        {
            entry.removeprefix("TABLE DATA ")
            for entry in entries
            if entry.startswith("TABLE DATA ")
        },
        {found[1] for found in extensions if found},
    )


def _listing(path: Path, pg_restore: Program, failed: Callable[[str], SearchError]) -> str:
    with tempfile.TemporaryFile() as output:
        run(pg_restore, ["--list", str(path)], failed, output=output)
        output.seek(0)
        return output.read().decode(errors="replace")


def list_without_extensions(
    path: Path, pg_restore: Program, failed: Callable[[str], SearchError]
) -> str:
    """The table of contents for ``--use-list``, without extensions: those stay in place."""
    lines = _listing(path, pg_restore, failed).splitlines(keepends=True)
    return "".join(
        line for line in lines if not re.match(r"\d+; \d+ \d+ (EXTENSION|COMMENT) - ", line)
    )


def make_durable(path: Path) -> None:
    """fsync a file, or a folder and all in it."""
    for file in [*dump_files(path).values(), *([path] if path.is_dir() else []), path.parent]:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
