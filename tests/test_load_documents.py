"""``manage.py load_documents`` and what it calls: files into the database."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command

from cartrita_search.errors import UnknownModel, UnreadableInput
from cartrita_search.files import DocumentFile, FileOptions, LoadReport, RefusedLine, load_file
from cartrita_search.ingest import KEPT_REFUSALS
from cartrita_search.models import KeywordCorpus, SearchDocument
from tests.conftest import Manage
from tests.postgres import row_versions, scalar, upsert

pytestmark = [pytest.mark.usefixtures("clean_tables"), pytest.mark.django_db(transaction=True)]


def written(tmp_path: Path, lines: Sequence[object], name: str = "a.jsonl") -> str:
    """A file of these lines, those that are no text as JSON."""
    path = tmp_path / name
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{text}\n" for text in texts))
    return str(path)


def load(path: str, **options: Any) -> LoadReport:
    return load_file(DocumentFile(path, FileOptions(source="notes")), **options)


def counts(report: LoadReport) -> tuple[int, int, int, int]:
    return (report.inserted, report.updated, report.unchanged, report.refused)


def stored(pg: psycopg.Connection, source: str = "notes") -> list[tuple[Any, ...]]:
    """Key, chunk and text of the documents."""
    return pg.execute(
        "SELECT source_id, chunk_index, content FROM search_documents "
        "WHERE source_table = %s ORDER BY 1, 2",
        [source],
    ).fetchall()


def vectors(pg: psycopg.Connection) -> dict[str, tuple[str, str]]:
    """Model and vector by key."""
    rows = pg.execute("SELECT source_id, embedding_model, embedding::text FROM embeddings")
    return {key: (model, vector) for key, model, vector in rows}


def notes(*keys: int, text: str = "Wings flutter.") -> list[dict[str, Any]]:
    return [{"id": key, "text": text} for key in keys]


# --- What is stored -----------------------------------------------------------


def test_every_value_of_a_line_is_stored(tmp_path: Path, pg: psycopg.Connection) -> None:
    line = {
        "id": 7,
        "chunk": 1,
        "title": "Titel",
        "content": "Text",
        "owner": 12,
        "tags": ["a", "b"],
        "language": "german",
        "metadata": {"k": [1, "é"]},
        "embedding": [0.5, -1],
    }
    report = load(written(tmp_path, [line]), model="mini")
    assert counts(report) == (1, 0, 0, 0)
    assert pg.execute(
        "SELECT source_table, source_id, chunk_index, title, content, user_id, tags, language, "
        "metadata FROM search_documents"
    ).fetchall() == [("notes", "7", 1, "Titel", "Text", 12, ["a", "b"], "german", {"k": [1, "é"]})]
    assert vectors(pg) == {"7": ("mini", "[0.5,-1]")}


def test_a_second_load_writes_what_changed(tmp_path: Path, pg: psycopg.Connection) -> None:
    assert counts(load(written(tmp_path, notes(1, 2, 3)))) == (3, 0, 0, 0)
    before = row_versions(pg, "search_documents")
    assert counts(load(written(tmp_path, notes(1, 2, 3)))) == (0, 0, 3, 0)
    assert row_versions(pg, "search_documents") == before

    changed = [*notes(1), *notes(2, text="Edited."), *notes(4)]
    assert counts(load(written(tmp_path, changed))) == (1, 1, 1, 0)
    texts = {key: text for key, _, text in stored(pg)}
    assert texts == dict.fromkeys("134", "Wings flutter.") | {"2": "Edited."}


def test_of_lines_with_one_key_the_last_is_stored(tmp_path: Path, pg: psycopg.Connection) -> None:
    lines = [{"id": 1, "text": "first"}, *notes(2), {"_id": "1", "text": "second"}]
    lines += [{"id": 1, "chunk": 1}, {"id": 1, "text": "third"}]
    report = load(written(tmp_path, lines), batch_size=3)
    assert (report.documents, report.duplicates) == (5, 2)
    assert stored(pg) == [("1", 0, "third"), ("1", 1, ""), ("2", 0, "Wings flutter.")]


def test_vectors_for_some_lines_leave_the_others_awaiting_theirs(
    tmp_path: Path, pg: psycopg.Connection
) -> None:
    lines = [{"id": 1, "embedding": [1, 0]}, *notes(2), {"id": 3, "embedding": [0, 1]}]
    assert counts(load(written(tmp_path, lines), model="mini")) == (3, 0, 0, 0)
    assert vectors(pg).keys() == {"1", "3"}

    # The one model is the default now.
    load(written(tmp_path, [{"id": 2, "text": "Wings flutter.", "embedding": [1, 1]}]))
    assert vectors(pg)["2"] == ("mini", "[1,1]")


def test_a_source_named_by_its_lines(tmp_path: Path, pg: psycopg.Connection) -> None:
    lines = [{"id": 1, "source_table": "essays"}, {"id": 1, "source_table": "notes"}]
    load_file(DocumentFile(written(tmp_path, lines)))
    assert stored(pg, "essays") == stored(pg, "notes") == [("1", 0, "")]


def test_a_line_without_an_owner_does_not_share_what_is_private(
    tmp_path: Path, pg: psycopg.Connection
) -> None:
    load(written(tmp_path, [{"id": 1, "owner": 7}, {"id": 2}]))
    assert counts(load(written(tmp_path, notes(1, 2)))) == (0, 2, 0, 0)
    owners = pg.execute("SELECT source_id, user_id FROM search_documents").fetchall()
    assert dict(owners) == {"1": 7, "2": None}


def test_a_large_load_ends_with_counting_the_words(tmp_path: Path) -> None:
    load(written(tmp_path, notes(*range(30))))
    assert KeywordCorpus.objects.get().documents == 30
    load(written(tmp_path, notes(*range(33))))
    assert KeywordCorpus.objects.get().documents == 30
    load(written(tmp_path, notes(*range(29))), prune=True)
    assert KeywordCorpus.objects.get().documents == 29


def test_progress_comes_to_the_number_of_lines(tmp_path: Path) -> None:
    lines = [*notes(*range(7)), "", "{", *notes(8)]
    steps: list[int] = []
    path = written(tmp_path, lines)
    load(path, progress=steps.append)
    assert sum(steps) == DocumentFile(path).count_lines() == 10


# --- What is not --------------------------------------------------------------


def test_bad_lines_are_reported_and_the_rest_is_stored(
    tmp_path: Path, pg: psycopg.Connection
) -> None:
    lines = [
        {"id": 1, "embedding": [1, 0]},
        '{"id": 2',
        {"id": 3, "embedding": [1, 0, 0]},
        {"id": 4, "language": "klingon"},
        {"id": 5, "text": "a\0b"},
        {"id": "x" * 501},
        {"id": 7, "embedding": [1e-30, 0]},
        {"id": 8, "embedding": [0, 1]},
    ]
    report = load(written(tmp_path, lines), model="mini", batch_size=2)
    assert counts(report) == (2, 0, 0, 6)
    assert [refusal.line for refusal in report.refusals] == [2, 3, 4, 5, 6, 7]
    messages = [refusal.message for refusal in report.refusals]
    for line, (message, part) in enumerate(
        zip(
            messages,
            (
                "broken JSON",
                'the vector has 3 dimensions, but model "mini" has 2',
                'no text search configuration "klingon"',
                "a NUL character",
                "500",
                "length",
            ),
            strict=True,
        ),
        start=2,
    ):
        assert message.startswith(f"Line {line}: ")
        assert part in message
    assert vectors(pg).keys() == {"1", "8"}


def test_the_dimension_is_the_registered_model_s(tmp_path: Path, pg: psycopg.Connection) -> None:
    upsert(pg, "1", [1, 0, 0], "mini")
    path = written(tmp_path, [{"id": 1, "embedding": [1, 0]}, {"id": 2, "embedding": [1, 0, 0]}])
    for options in ({}, {"model": "mini"}, {"dry_run": True}):
        report = load(path, **options)
        assert report.refusals == [
            RefusedLine(1, 'Line 1: the vector has 2 dimensions, but model "mini" has 3.')
        ]
    # Another model has its own, and not that of a vector that no model can have.
    assert [refusal.line for refusal in load(path, model="large").refusals] == [2]
    path = written(tmp_path, [{"id": 1, "embedding": [1] * 16_001}, {"id": 2, "embedding": [1]}])
    assert [refusal.line for refusal in load(path, model="small").refusals] == [1]


def test_the_first_refusals_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    lines = [{"id": n, "language": "klingon"} if n % 2 else "{" for n in range(500)]
    report = load(written(tmp_path, [*lines, *notes(1000)]))
    assert counts(report) == (1, 0, 0, 500)
    assert [refusal.line for refusal in report.refusals] == list(range(1, KEPT_REFUSALS + 1))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "Line 8: broken JSON"),
        ({"id": 7, "embedding": [1]}, "Line 8: the vector has 1 dimensions"),
        ({"id": 7, "language": "klingon"}, "Line 8: .*klingon"),
        ({"id": 7, "embedding": [1e-30, 0]}, "Line 8: .*length"),
    ],
)
def test_with_raise_one_bad_line_leaves_everything_as_it_was(
    tmp_path: Path, pg: psycopg.Connection, bad: object, message: str
) -> None:
    upsert(pg, "0", [1, 0], "mini", p_content="Before.")
    before = row_versions(pg, "search_documents"), stored(pg)
    lines = [{**note, "embedding": [0, 1]} for note in notes(*range(7))]
    with pytest.raises(UnreadableInput, match=message) as refused:
        load(written(tmp_path, [*lines, bad]), on_error="raise", batch_size=2, model="mini")
    assert (row_versions(pg, "search_documents"), stored(pg)) == before
    assert vectors(pg) == {"0": ("mini", "[1,0]")}
    assert refused.value.hint == "Nothing was changed."

    report = load(written(tmp_path, lines), on_error="raise", batch_size=2)
    assert counts(report) == (6, 1, 0, 0)


@pytest.mark.parametrize("lines", [[], ["", "  "], ["id,title"], ["", "id,title", ""]])
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_file_of_nothing_is_an_error_and_prunes_nothing(
    tmp_path: Path, pg: psycopg.Connection, lines: list[str], dry_run: bool
) -> None:
    upsert(pg, "1", [1, 0])
    name = "a.csv" if any(lines) and "id,title" in lines else "a.jsonl"
    with pytest.raises(UnreadableInput, match="holds no documents"):
        load(written(tmp_path, lines, name), prune=True, dry_run=dry_run)
    assert len(stored(pg)) == 1


def test_vectors_need_a_model(tmp_path: Path, pg: psycopg.Connection) -> None:
    path = written(tmp_path, [*notes(1), {"id": 2, "embedding": [1, 0]}])
    for options in ({}, {"dry_run": True}, {"on_error": "raise"}):
        with pytest.raises(UnknownModel, match="Line 2 has a vector, but no model") as refused:
            load(path, **options)
        assert "Name the model" in refused.value.hint
        assert stored(pg) == []


# --- Pruning, and dry runs ----------------------------------------------------


@pytest.mark.parametrize("on_error", ["report", "raise"])
def test_prune_deletes_what_the_file_does_not_hold(
    tmp_path: Path, pg: psycopg.Connection, on_error: str
) -> None:
    lines = [{"id": key, "chunk": chunk} for key in range(5) for chunk in range(3)]
    load(written(tmp_path, lines))
    upsert(pg, "1", [1, 0], source_table="essays")

    kept = [{"id": 0, "chunk": 0}, {"id": 2, "chunk": 0}, {"id": 2, "chunk": 1}]
    assert load(written(tmp_path, kept)).pruned is None
    assert len(stored(pg)) == 15
    report = load(written(tmp_path, kept), prune=True, on_error=on_error)
    assert (report.pruned, counts(report)) == (12, (0, 0, 3, 0))
    assert [row[:2] for row in stored(pg)] == [("0", 0), ("2", 0), ("2", 1)]
    assert len(stored(pg, "essays")) == 1


@pytest.mark.parametrize("bad", ["{", {"id": 9, "language": "klingon"}])
def test_nothing_is_pruned_where_a_line_was_refused(
    tmp_path: Path, pg: psycopg.Connection, bad: object
) -> None:
    load(written(tmp_path, notes(1, 2)))
    report = load(written(tmp_path, [*notes(1), bad]), prune=True)
    assert (report.pruned, report.refused) == (None, 1)
    assert len(stored(pg)) == 2


def test_a_dry_run_reads_everything_and_writes_nothing(
    tmp_path: Path, pg: psycopg.Connection
) -> None:
    load(written(tmp_path, notes(1)))
    before = row_versions(pg, "search_documents")
    lines = [*notes(2, 2), "{", {"id": 3, "embedding": [1, 0], "url": 1}]
    report = load(written(tmp_path, lines), dry_run=True, prune=True, model="mini")
    assert (report.documents, report.duplicates, report.refused) == (3, 1, 1)
    assert (report.pruned, report.passed_over) == (None, ["url"])
    assert row_versions(pg, "search_documents") == before
    assert scalar(pg, "SELECT count(*) FROM embedding_models") == 0


# --- manage.py load_documents -------------------------------------------------


def test_json_lines_from_end_to_end(
    tmp_path: Path, manage: Manage, pg: psycopg.Connection
) -> None:
    lines = [
        {"id": 1, "text": "a", "embedding": [1, 0], "url": "x"},
        {"id": 2, "text": "b"},
        {"id": 1, "text": "c", "embedding": [1, 0]},
    ]
    path = written(tmp_path, lines)
    done = manage("load_documents", path, "--source", "notes", "--model", "mini", "--prune")
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first.endswith("0 refused.")
    assert rest[:4] == [
        "1 were replaced by a later line with the same key.",
        'Its vectors are the first of model "mini".',
        "Passed over: 'url'.",
        "0 deleted, which the file does not hold.",
    ]
    assert done.stderr.splitlines()[-1].startswith(f"{path}: 3 of 3 (100 %), ")
    assert stored(pg) == [("1", 0, "c"), ("2", 0, "b")]

    # A model that is known already is not told of.
    lines = [{"id": 3, "embedding": [1, 0]}]
    done = manage("load_documents", written(tmp_path, lines, "more.jsonl"), "--source", "more")
    assert done.stdout == "1 inserted, 0 updated, 0 unchanged, 0 refused.\n"

    done = manage("load_documents", written(tmp_path, notes(2)), "--source", "notes", "--prune")
    assert done.stdout.splitlines()[0] == "0 inserted, 1 updated, 0 unchanged, 0 refused."
    assert done.stdout.splitlines()[1] == "1 deleted, which the file does not hold."


def test_csv_from_end_to_end(tmp_path: Path, manage: Manage, pg: psycopg.Connection) -> None:
    path = written(
        tmp_path,
        ["article_no;headline;labels", "1;Flight;wing|history", "2;Sea;", ";Nothing;"],
        "articles.csv",
    )
    mapping = "id=article_no,title=headline,tags=labels"
    done = manage(
        *("load_documents", path, "--source", "articles", "--columns", mapping),
        *("--delimiter", ";", "--tag-separator", "|"),
    )
    assert done.returncode == 3
    assert done.stdout == "2 inserted, 0 updated, 0 unchanged, 1 refused.\n"
    *_, refusal, last = done.stderr.splitlines()
    assert refusal == "Line 4: no id; it goes by id, source_id, _id."
    assert last == "CommandError: 1 refused."
    rows = pg.execute("SELECT title, tags FROM search_documents ORDER BY source_id").fetchall()
    assert rows == [("Flight", ["wing", "history"]), ("Sea", [])]


@pytest.mark.parametrize(
    ("lines", "arguments", "message"),
    [
        (["{"], ["--on-error", "raise"], "Line 1: broken JSON at column 2"),
        (["{"], ["--columns", "id=a"], "A column mapping is for CSV"),
        (["{"], ["--columns", "key=a"], "The column mapping has 'key=a'."),
        (["a,b"], ["--format", "csv", "--columns", "id=c"], "has no column 'c', meant for id"),
        (["{}"], ["--encoding", "klingon"], "no encoding 'klingon'"),
        ([], [], "holds no documents"),
        (['{"id": 1, "embedding": [1]}'], [], "Line 1 has a vector, but no model is named"),
    ],
)
def test_errors_are_one_line_and_exit_status_1(
    tmp_path: Path,
    manage: Manage,
    lines: list[str],
    arguments: list[str],
    message: str,
) -> None:
    path = written(tmp_path, lines)
    done = manage("load_documents", path, "--source", "notes", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = [line for line in done.stderr.splitlines() if " %)" not in line]
    assert message in line
    assert not SearchDocument.objects.exists()


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(CommandError, match="cannot be read") as refused:
            call_command("load_documents", str(path), "--format", "jsonl")
        assert refused.value.returncode == 1


def test_standard_input_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b'{"id": 1, "source_table": "notes"}\n{\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))
    out = io.StringIO()
    with pytest.raises(CommandError, match="1 refused") as refused:
        call_command("load_documents", "-", "--json", stdout=out)
    assert refused.value.returncode == 3
    outcome = json.loads(out.getvalue())
    assert (outcome["inserted"], outcome["refused"]) == (1, 1)
    assert outcome["refusals"][0]["line"] == 2
    assert outcome["refusals"][0]["message"].startswith("Line 2: broken JSON")


def test_what_a_dry_run_says(tmp_path: Path, pg: psycopg.Connection) -> None:
    out, errors = io.StringIO(), io.StringIO()
    with pytest.raises(CommandError, match="1 refused"):
        call_command(
            *("load_documents", written(tmp_path, [*notes(1, 2), "{"]), "--source", "notes"),
            *("--dry-run", "--prune"),
            stdout=out,
            stderr=errors,
        )
    assert out.getvalue().splitlines() == [
        "A dry run: 2 could be read, 1 not.",
        "Nothing was deleted: a refused line may hold any document.",
    ]
    assert errors.getvalue().startswith("Line 3: broken JSON")
    assert stored(pg) == []


def test_an_index_built_at_the_end_is_told(tmp_path: Path, pg: psycopg.Connection) -> None:
    lines = [{"id": n, "embedding": [1, n]} for n in range(30)]
    pg.execute("UPDATE search_settings SET exact_scan_max_rows = 10")
    out = io.StringIO()
    call_command(
        *("load_documents", written(tmp_path, lines), "--source", "notes", "--model", "mini"),
        *("--index", "rebuild"),
        stdout=out,
    )
    first, _, index = out.getvalue().splitlines()
    assert first == "30 inserted, 0 updated, 0 unchanged, 0 refused."
    assert "HNSW" in index
    assert scalar(pg, "SELECT index_method FROM embedding_models") == "hnsw"


class Interrupted(io.RawIOBase):
    """Where somebody presses Ctrl-C while it is read."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        raise KeyboardInterrupt


def test_an_interrupted_command_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Interrupted())))
    with pytest.raises(CommandError, match=r"Interrupted\. Run it again") as stopped:
        call_command("load_documents", "-")
    assert stopped.value.returncode == 130
