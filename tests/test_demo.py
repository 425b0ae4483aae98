"""``manage.py demo`` from end to end: the real library, model, server and command."""

from __future__ import annotations

import json
from uuid import uuid4

import psycopg
import pytest

from cartrita_search import demo
from cartrita_search.retrieval import Hit
from tests.conftest import Manage

pytestmark = pytest.mark.usefixtures("clean_tables")


def embedded_rows(pg: psycopg.Connection) -> dict[str, str]:
    """The version of each embedding's row, which any write changes."""
    return dict(pg.execute("SELECT source_id, xmin::text FROM embeddings").fetchall())


def test_a_second_run_embeds_only_what_changed(manage: Manage, pg: psycopg.Connection) -> None:
    first = manage("demo", "--limit", "120")
    assert first.returncode == 0, first.stderr
    assert "120 docstrings of Python" in first.stdout
    assert "120 embedded, 0 unchanged" in first.stdout
    assert "120 of 120 (100 %)" in first.stderr
    rows = embedded_rows(pg)
    assert set(rows) == {doc.name for doc in demo.collect(120)}

    second = manage("demo", "--limit", "120")
    assert second.returncode == 0, second.stderr
    assert "Nothing to embed" in second.stdout
    assert "0 embedded, 120 unchanged" in second.stdout
    assert second.stderr == ""
    assert embedded_rows(pg) == rows

    changed = min(rows)
    pg.execute("UPDATE embeddings SET content_hash = 'older' WHERE source_id = %s", [changed])
    rows = embedded_rows(pg)
    third = manage("demo", "--limit", "120")
    assert "1 embedded, 119 unchanged" in third.stdout
    now = embedded_rows(pg)
    assert {name for name in now if now[name] != rows[name]} == {changed}


def test_what_it_says(manage: Manage) -> None:
    done = manage("demo", "--limit", "40")
    said, _, next_steps = done.stdout.partition("Ask something yourself:")
    for question in demo.QUESTIONS:
        assert f"\n{question}\n" in said
    for column in ("title", "matched_by", "cosine", "BM25", "hybrid", "vector #", "keyword #"):
        assert said.count(column) >= len(demo.QUESTIONS)
    assert said.count("vector only") == said.count("keyword only") == len(demo.QUESTIONS)
    assert "An exact scan" in said
    assert max(map(len, said.splitlines())) <= 100
    for step in ("search", "createsuperuser", "runserver", "/admin/", "make stop"):
        assert step in next_steps


def test_json_and_other_questions(manage: Manage) -> None:
    done = manage("demo", "--limit", "40", "--json", "--questions", "parse a date", "a file")
    outcome = json.loads(done.stdout)
    assert (outcome["documents"], outcome["embedded"]) == (40, 40)
    assert "exact scan" in outcome["index"]
    assert [answer["question"] for answer in outcome["answers"]] == ["parse a date", "a file"]
    for answer in outcome["answers"]:
        assert len(answer["hybrid"]) == len(answer["vector_only"]) == 5
        scores = [hit["hybrid_score"] for hit in answer["hybrid"]]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["--limit", "0"], {}, "The limit must be at least 1"),
        ([], {"EMBEDDER": "nowhere.Absent"}, "cannot be imported"),
    ],
)
def test_a_refusal_is_one_line(
    manage: Manage,
    pg: psycopg.Connection,
    arguments: list[str],
    variables: dict[str, str],
    message: str,
) -> None:
    done = manage("demo", *arguments, **variables)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert embedded_rows(pg) == {}


@pytest.mark.django_db(transaction=True)
def test_it_finds_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {
        "how do I parse an ISO date": "datetime.datetime.fromisoformat",
        "run a function in another process": "multiprocessing.Process.run",
        "find files recursively by pattern": "pathlib.Path.rglob",
        "cache the result of a function": "functools.lru_cache",
        "run coroutines concurrently and gather their results": "asyncio.gather",
        "extract a zip archive": "zipfile.ZipFile.extractall",
        "copy a whole directory tree": "shutil.copytree",
    }
    assert tuple(expected) == demo.QUESTIONS
    docs = demo.collect()
    some = [doc for i, doc in enumerate(docs) if i % 16 == 0 or doc.name in expected.values()]
    monkeypatch.setattr(demo, "collect", lambda limit: some)
    said: list[str] = []

    loaded = demo.load(None, said.append)

    assert loaded.documents == loaded.embedded == len(some)
    assert loaded.index in " ".join("\n".join(said).split())
    for question, name in expected.items():
        assert name in [hit.source_id for hit in demo.ask(question).hybrid[:3]]


@pytest.mark.django_db(transaction=True)
def test_a_full_run_deletes_what_another_python_left(
    monkeypatch: pytest.MonkeyPatch, pg: psycopg.Connection
) -> None:
    def names(source: str) -> set[str]:
        rows = pg.execute("SELECT source_id FROM embeddings WHERE source_table = %s", [source])
        return {name for (name,) in rows}

    docs = [demo.Docstring(name, "function", "()", f"The text of {name}.") for name in "abc"]
    monkeypatch.setattr(demo, "collect", lambda limit: docs[:limit])
    said: list[str] = []
    for source in (demo.SOURCE, "articles"):
        pg.execute(
            "SELECT upsert_embedding(%s, 'gone'::text, array_fill(1, ARRAY[384])::vector, %s)",
            [source, "all-MiniLM-L6-v2"],
        )

    demo.load(2, said.append)
    assert names(demo.SOURCE) == {"a", "b", "gone"}
    demo.load(None, said.append)
    assert names(demo.SOURCE) == {"a", "b", "c"}
    assert names("articles") == {"gone"}


def test_an_answer_shows_where_each_leg_ranks_a_hit() -> None:
    def hit(name: str, matched_by: str = "hybrid", bm25: float | None = 1.5) -> Hit:
        return Hit(uuid4(), "t", name, 0, f"{name}()", "", {}, 0.5, 0.25, bm25, matched_by)

    answer = demo.Answer(
        "which one", [hit("a"), hit("b", "vector", None)], [hit("b"), hit("a")], [hit("a")]
    )
    assert str(answer).splitlines() == [
        "which one",
        "",
        "#  title  matched_by  cosine   BM25  hybrid  vector #  keyword #",
        "-  -----  ----------  ------  -----  ------  --------  ---------",
        "1  a      hybrid       0.250  1.500   0.500         2          1",
        "2  b      vector       0.250      -   0.500         1          -",
        "",
        "#  vector only  keyword only",
        "-  -----------  ------------",
        "1  b            a",
        "2  a            -",
    ]
