"""The README's examples run as they stand, and its tables name what there is."""

from __future__ import annotations

import re

import psycopg
import pytest
from django.conf import settings
from django.core.management import get_commands

from cartrita_search import errors
from tests.examples import Example, examples, run_python, statements

README = (settings.BASE_DIR / "README.md").read_text(encoding="utf-8")


def example(language: str) -> Example:
    """The README's one fenced block in that language."""
    (found,) = [each for each in examples(README) if each.language == language]
    return found


def first_cells(header: str) -> list[str]:
    """The first column of the table with that header."""
    table = README.split(f"| {header} |", 1)[1].split("\n\n", 1)[0]
    return [line.split("|")[1].strip() for line in table.splitlines()[2:]]


@pytest.mark.django_db
def test_the_python_example_finds_what_it_stored() -> None:
    printed = run_python(example("python"), "README.md", {})
    assert printed.startswith("tempfile hybrid ")


def test_the_sql_example_prefers_the_right_row(pg: psycopg.Connection, clean_tables: None) -> None:
    *_, hybrid, similarity = [
        pg.execute(statement.encode()).fetchall() for statement in statements(example("sql").code)
    ]
    assert hybrid[0][:2] == ("Tea", "hybrid")
    assert [row[0] for row in similarity] == ["8"]


def test_every_sqlstate_stands_with_its_class() -> None:
    rows = re.findall(r"^\| (SE\d{3}) \| `(\w+)` \|", README, flags=re.MULTILINE)
    assert {code: getattr(errors, name) for code, name in rows} == errors.BY_CODE


def test_every_picture_is_shown_and_every_one_shown_is_there() -> None:
    shown = re.findall(r"!\[[^\]]+\]\((docs/images/admin-[^)]+)\)", README)
    kept = (settings.BASE_DIR / "docs" / "images").glob("admin-*")
    assert sorted(shown) == sorted(str(path.relative_to(settings.BASE_DIR)) for path in kept)


def test_every_command_named_exists() -> None:
    named = {cell.split()[1].strip("`") for cell in first_cells("command | what it does")}
    assert named <= set(get_commands())


def test_every_variable_named_is_described_in_env_example() -> None:
    described = (settings.BASE_DIR / ".env.example").read_text(encoding="utf-8")
    named = re.findall(r"`([A-Z][A-Z0-9_]+)`", "".join(first_cells("variable | default |")))
    assert named
    assert [name for name in named if not re.search(rf"^# {name}=", described, re.MULTILINE)] == []
