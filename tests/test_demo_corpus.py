"""The demo's corpus: the standard library of whatever Python runs these tests."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from django.conf import settings

from cartrita_search.demo import MIN_CHARACTERS, Docstring, collect


@pytest.fixture(scope="module")
def corpus() -> dict[str, Docstring]:
    return {doc.name: doc for doc in collect()}


def test_it_is_large_enough_and_in_order(corpus: dict[str, Docstring]) -> None:
    assert 2_000 <= len(corpus) <= 6_000
    assert list(corpus) == sorted(corpus)


def test_no_two_documents_are_the_same(corpus: dict[str, Docstring]) -> None:
    docs = collect()
    assert len({doc.name for doc in docs}) == len({doc.text for doc in docs}) == len(docs)
    assert docs == list(corpus.values())


def test_every_document_can_be_stored_and_says_something(corpus: dict[str, Docstring]) -> None:
    for doc in corpus.values():
        assert len(doc.text) >= MIN_CHARACTERS
        assert doc.text == doc.text.strip()
        assert "\x00" not in doc.title + doc.text
        assert (doc.title + doc.text).encode().decode() == doc.title + doc.text
        assert not any(part.startswith("_") for part in doc.name.split("."))
        assert doc.kind in {"module", "class", "function", "method"}


@pytest.mark.parametrize(
    ("name", "kind", "title"),
    [
        # defined where everybody looks
        ("glob.glob", "function", "glob.glob(pathname, *, root_dir=None,"),
        ("shutil.copytree", "function", "shutil.copytree(src, dst, symlinks=False,"),
        ("subprocess.CalledProcessError", "class", "subprocess.CalledProcessError(returncode,"),
        ("json", "module", "json"),
        # under a private or another name in some versions
        ("datetime.datetime.fromisoformat", "method", None),
        ("pathlib.Path.rglob", "method", "pathlib.Path.rglob(pattern"),
        ("decimal.Decimal.quantize", "method", "decimal.Decimal.quantize(exp, rounding=None"),
        (
            "collections.abc.Mapping.get",
            "method",
            "collections.abc.Mapping.get(key, default=None)",
        ),
        # defined in a submodule, known as the package's
        ("asyncio.run", "function", "asyncio.run(main, *, debug=None"),
        ("concurrent.futures.ProcessPoolExecutor", "class", None),
        ("multiprocessing.Process", "class", "multiprocessing.Process(group=None, target=None,"),
        # written in C
        ("str.split", "method", "str.split(sep=None, maxsplit=-1)"),
        ("sorted", "function", None),
        ("itertools.islice", "class", "itertools.islice"),
        ("collections.deque", "class", None),
        ("zlib.compress", "function", None),
    ],
)
def test_what_people_ask_for_is_there(
    corpus: dict[str, Docstring], name: str, kind: str, title: str | None
) -> None:
    assert corpus[name].kind == kind
    assert corpus[name].title.startswith(title or name)


def test_a_limit_spreads_over_the_names(corpus: dict[str, Docstring]) -> None:
    few = collect(limit=50)
    assert len(few) == 50
    assert few == [corpus[doc.name] for doc in few]
    assert len({doc.name.split(".")[0] for doc in few}) > 20
    assert len(collect(limit=10**6)) == len(corpus)


def test_collecting_runs_no_module_written_in_python() -> None:
    program = """
import sys, sysconfig, django
django.setup()
from cartrita_search.demo import collect
sysconfig.get_path("stdlib")  # imports a module of its own
before = set(sys.modules)
collect()
for name in set(sys.modules) - before:
    if (getattr(sys.modules[name], "__file__", None) or "").endswith(".py"):
        print(name)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=settings.BASE_DIR,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
