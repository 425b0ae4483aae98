"""Every example of docs/guide.md runs as it stands, and prints what the page says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.test import override_settings
from django.utils.module_loading import import_string

from cartrita.embedded.postgres import client_program
from cartrita_search import sources
from cartrita_search.terminal import table
from tests.examples import Example, examples, is_as_expected, run_python, statements

NAME = "docs/guide.md"
GUIDE = (settings.BASE_DIR / NAME).read_text(encoding="utf-8")
NODE_FOLDER = settings.BASE_DIR / "tests" / "node"

Runner = Callable[[Example], str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's project: ``manage.py``, and the files that the page says to make."""
    (tmp_path / "manage.py").symlink_to(settings.BASE_DIR / "manage.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def environment(
    folder: Path, database: dict[str, Any], manage_environment: dict[str, str]
) -> dict[str, str]:
    """What the page says to set, with the virtual environment and psql on the path."""
    programs = [Path(sys.executable).parent, Path(client_program("psql")).parent]
    return manage_environment | {
        "PATH": os.pathsep.join([*map(str, programs), os.environ["PATH"]]),
        "ENV_FILE": str(folder / ".env"),
        # A manage.py that is no link has its own folder on Python's path.
        "PYTHONPATH": str(folder),
        "PGHOST": database["host"],
        "PGPORT": database["port"],
        "PGUSER": database["user"],
        "PGDATABASE": database["dbname"],
    }


@pytest.fixture
def embedder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process has read its settings long ago; the page's ``.env`` counts all the same."""
    (path,) = re.findall(r"\bEMBEDDER=(\S+)", GUIDE)
    # Sources that the page registers are for this test alone.
    monkeypatch.setattr(sources, "_registry", {})
    with override_settings(CARTRITA_SEARCH=settings.CARTRITA_SEARCH | {"EMBEDDER": path}):
        yield


@pytest.fixture
def runners(
    folder: Path, environment: dict[str, str], pg: psycopg.Connection
) -> dict[str, Runner]:
    """By language, what runs an example and returns what it prints."""
    namespace: dict[str, Any] = {}

    def python(example: Example) -> str:
        first_line = example.code.partition("\n")[0]
        if file := re.fullmatch(r"# (\w+\.py)", first_line):
            (folder / file[1]).write_text(example.code, encoding="utf-8")
            return ""
        return run_python(example, NAME, namespace)

    def sql(example: Example) -> str:
        printed = []
        for statement in statements(example.code):
            cursor = pg.execute(statement.encode())
            if cursor.description is not None:
                names = [column.name for column in cursor.description]
                printed.append(table(names, cursor.fetchall()))
        return "\n\n".join(printed)

    def program(*command: str, cwd: Path) -> Runner:
        def run(example: Example) -> str:
            done = subprocess.run(
                [*command, example.code],
                stdin=subprocess.DEVNULL,
                cwd=cwd,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        return run

    return {
        "python": python,
        "sql": sql,
        "sh": program("sh", "-euc", cwd=folder),
        "js": program("node", "--input-type=module", "--eval", cwd=NODE_FOLDER),
    }


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("clean_tables", "embedder")
def test_every_example_prints_what_the_page_says(runners: dict[str, Runner]) -> None:
    assert shutil.which("node"), "The page's Node examples need Node.js 18 or newer, with npm."
    assert (NODE_FOLDER / "node_modules" / "pg").is_dir(), (
        "The page's Node examples need the package pg: run `npm install --prefix tests/node`"
        " (`make test` does)."
    )
    ran = set()
    for example in examples(GUIDE):
        try:
            printed = runners[example.language](example)
        except Exception as error:
            error.add_note(f"This was the example at {NAME}:{example.line}.")
            raise
        if example.expected is not None:
            assert is_as_expected(printed, example.expected), (
                f"{NAME}:{example.line}: the {example.language} example prints\n{printed}"
            )
        ran.add(example.language)
    assert ran == set(runners)


def test_every_class_named_by_its_path_exists() -> None:
    paths = re.findall(r"\bcartrita_search\.\w+\.[A-Z]\w+", GUIDE)
    assert paths
    assert all(isinstance(import_string(path), type) for path in paths)


@pytest.mark.parametrize(
    ("printed", "expected", "fits"),
    [
        ("one\ntwo\n", "one\ntwo\n", True),
        ("one  \ntwo\n", "one\ntwo\n", True),
        ("one\ntwo\nthree\n", "one\n…\nthree\n", True),
        ("12 rows in 0.3 s\n", "12 rows in … s\n", True),
        ("one\ntwo\n", "one\n", False),
        ("12 rows in 0.3 s\n", "13 rows in … s\n", False),
        ("a.b\n", "a?b\n", False),
    ],
)
def test_an_ellipsis_stands_for_anything(printed: str, expected: str, fits: bool) -> None:
    assert is_as_expected(printed, expected) is fits
