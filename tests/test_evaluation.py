"""Judged queries: measures by hand, the scratch database, the weight curve, bad input."""

from __future__ import annotations

import gzip
import json
import math
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.test import override_settings
from psycopg import sql
from pytest_django import DjangoDbBlocker

from cartrita_search import metrics
from cartrita_search.embedders import Vector
from cartrita_search.errors import (
    EmbedderOverloaded,
    InvalidArgument,
    InvalidWeights,
    UnreadableInput,
)
from cartrita_search.evaluation import (
    Key,
    check_plot,
    draw,
    evaluate_collection,
    evaluate_live,
    measure,
)
from cartrita_search.evaluation.evaluate import Candidates, hybrid_windows
from cartrita_search.evaluation.judgements import (
    JudgedQuery,
    read_collection,
    read_judgements,
)
from cartrita_search.evaluation.weights import GRID, band, grid, judge
from cartrita_search.models import RetrievalConfig
from cartrita_search.retrieval import Options
from tests.collections_data import SHARED_DATA, needs_shared_data
from tests.conftest import Connect, Manage
from tests.postgres import row_versions, scalar, upsert, writing_nothing

LOG3, LOG5 = math.log2(3), math.log2(5)

# --- Measures -----------------------------------------------------------------


def test_measures_by_hand() -> None:
    grades = {"a": 2, "b": 1, "c": 0, "d": 1, "e": -3}
    ideal = 2 + 1 / LOG3 + 1 / 2
    values = measure(
        [["c", "x", "b", "a"], ["a", "b", "d"], [], ["e", "d"]],
        [grades, grades, grades, grades],
    )
    assert values["nDCG@10"] == pytest.approx([(1 / 2 + 2 / LOG5) / ideal, 1, 0, 1 / LOG3 / ideal])
    assert values["R@100"] == pytest.approx([2 / 3, 1, 0, 1 / 3])
    assert values["RR@10"] == pytest.approx([1 / 3, 1, 0, 1 / 2])


def test_measures_look_no_deeper_than_their_names_say() -> None:
    ranking = [f"x{rank}" for rank in range(10)] + ["a"]
    values = measure([ranking, [*ranking[:10], *map(str, range(90)), "a"]], [{"a": 1}, {"a": 1}])
    assert values["nDCG@10"].tolist() == values["RR@10"].tolist() == [0, 0]
    assert values["R@100"].tolist() == [1, 0]


def test_nothing_relevant_measures_nothing() -> None:
    for values in measure([["a"]], [{"a": 0}]).values():
        assert values.tolist() == [0]
    for values in measure([], []).values():
        assert values.tolist() == []


# --- A folder -------------------------------------------------------------------

#: By cosine to (1, 0): c, b, a, d. "tea" is three times in b, and in the title of a.
CORPUS: list[dict[str, Any]] = [
    {"_id": "a", "title": "Green tea", "text": "steep"},
    {"_id": "b", "text": "tea tea tea"},
    {"_id": "c", "title": None, "text": "coffee beans", "metadata": {"ignored": True}},
    {"_id": "d", "title": "", "text": "roasted chicory root"},
]
VECTORS = {"a": (0, 1), "b": (0.6, 0.8), "c": (1, 0), "d": (-1, 0)}
QUERIES = {"1": "tea", "2": "coffee", "3": "nothing relevant", "4": "nothing judged"}
QRELS = [
    *(("1", "a", 2), ("1", "b", 1), ("1", "d", 1), ("1", "c", 0), ("1", "gone", 1)),
    *(("2", "c", 1), ("3", "a", 0), ("3", "b", -1), ("nobody", "a", 1)),
]
IDEAL = 2 + 1 / LOG3 + 1 / 2
#: Of query 1: vector c b a d, keyword b a, hybrid b c a d, rrf b a c d. Query 2 is always right.
EXPECTED = {
    "vector": ((1 / LOG3 + 2 / 2 + 1 / LOG5) / IDEAL, 1, 1 / 2),
    "keyword": ((1 + 2 / LOG3) / IDEAL, 2 / 3, 1),
    "hybrid": ((1 + 2 / 2 + 1 / LOG5) / IDEAL, 1, 1),
    "rrf": ((1 + 2 / LOG3 + 1 / LOG5) / IDEAL, 1, 1),
}


def write_lines(path: Path, records: Sequence[object]) -> None:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))


@pytest.fixture
def django_access(clean_tables: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """Django's connections for tests that commit and that make another database.

    The django_db mark would allow none but those that it knows beforehand.
    """
    with django_db_blocker.unblock():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BEIR-style folder with vectors."""
    made = tmp_path / "drinks"
    made.mkdir()
    write_lines(made / "corpus.jsonl", CORPUS)
    write_lines(made / "queries.jsonl", [{"_id": i, "text": text} for i, text in QUERIES.items()])
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in QRELS)]
    (made / "qrels.tsv").write_text("\n".join(lines) + "\n")
    save_vectors(made, "corpus", VECTORS)
    save_vectors(made, "query", dict.fromkeys(QUERIES, (1, 0)))
    return made


def save_vectors(folder: Path, what: str, vectors: dict[str, Any]) -> None:
    # Another order than the lines have.
    ids = sorted(vectors, reverse=True)
    save_rows(folder, what, ids, [vectors[i] for i in ids])


def save_rows(folder: Path, what: str, ids: list[str], rows: Sequence[Any]) -> None:
    (folder / f"{what}_ids.json").write_text(json.dumps(ids))
    np.save(folder / f"{what}_emb.npy", np.array(rows, np.float16))


def without_vectors(folder: Path) -> None:
    for name in ("corpus_emb.npy", "query_emb.npy"):
        (folder / name).unlink()


def scratch_databases(pg: psycopg.Connection) -> list[str]:
    rows = pg.execute(r"SELECT datname FROM pg_database WHERE datname LIKE '%\_evaluation'")
    return [name for (name,) in rows]


def live_contents(pg: psycopg.Connection) -> list[object]:
    return [
        row_versions(pg, "search_documents"),
        row_versions(pg, "embeddings"),
        pg.execute(
            "SELECT xmin::text, t::text FROM keyword_statistics AS t ORDER BY 2"
        ).fetchall(),
        pg.execute("SELECT xmin::text, t::text FROM embedding_models AS t").fetchall(),
    ]


def expected_means(search: str) -> list[Any]:
    return [pytest.approx((value + 1) / 2) for value in EXPECTED[search]]


@pytest.mark.usefixtures("clean_tables")
def test_the_measures_of_a_folder(manage: Manage, pg: psycopg.Connection, folder: Path) -> None:
    upsert(pg, "1", [1, 0], p_title="tea, tea and tea again")
    pg.execute("SELECT refresh_keyword_statistics()")
    before = live_contents(pg)

    done = manage("evaluate_search", str(folder), "--json")

    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert {search: list(means.values()) for search, means in outcome["searches"].items()} == {
        search: expected_means(search) for search in EXPECTED
    }
    assert list(outcome["searches"]["hybrid"]) == ["nDCG@10", "R@100", "RR@10"]
    assert (outcome["name"], outcome["documents"]) == ("drinks", 4)
    assert (outcome["queries"], outcome["judgements"]) == (2, 5)
    assert outcome["left_out"] == {"queries": 2, "judgements": 2}
    assert outcome["weights"] == [0.7, 0.3]
    assert outcome["sweep"] is None
    assert "Loading: 4 of 4 (100 %)" in done.stderr
    assert "Searching: 2 of 2 (100 %)" in done.stderr
    assert live_contents(pg) == before
    assert scratch_databases(pg) == []


@pytest.mark.usefixtures("django_access")
def test_what_the_command_says(folder: Path, tmp_path: Path, capsys: Any) -> None:
    picture = tmp_path / "curve.png"
    call_command("evaluate_search", folder, "--plot", picture, "--weights", "0.72,0.28")
    said = capsys.readouterr().out
    assert "drinks: 4 documents, 2 judged queries, 5 judgements, model folder-vectors" in said
    assert (
        "Left out: 2 queries without a relevant document, "
        "2 judgements of an unknown query or document." in said
    )
    for row in ("vector ", "keyword ", "hybrid 0.72/0.28 ", "rrf 0.72/0.28 "):
        assert f"\n{row}" in said
    assert [line.split()[-1] for line in said.splitlines() if line.startswith("0.72/0.28")] == [
        "present"
    ]
    # Two queries can never be significant.
    assert " ".join(said.split()).endswith("Keep the present weights.")
    assert max(map(len, said.splitlines())) <= 100
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.usefixtures("django_access")
def test_the_present_weights_are_the_site_s(folder: Path) -> None:
    RetrievalConfig.objects.create(vector_weight=0, keyword_weight=1)
    RetrievalConfig.objects.create(vector_weight=1, keyword_weight=0, is_active=False)
    outcome = evaluate_collection(folder)
    assert outcome.vector_weight == 0
    assert list(outcome.means["hybrid"].values()) == expected_means("keyword")

    given = evaluate_collection(folder, weights=(1, 0), sweep=True)
    assert list(given.means["hybrid"].values()) == expected_means("vector")
    assert given.sweep is not None
    assert given.sweep.weights == GRID
    for search, weight in (("keyword", 0.0), ("vector", 1.0), ("hybrid", 0.7)):
        at = given.sweep.weights.index(weight)
        assert [float(given.sweep.curve(m)[at]) for m in given.means[search]] == expected_means(
            search
        )


@pytest.mark.usefixtures("django_access")
@pytest.mark.parametrize("weights", [(0.7, 0.4), (-0.1, 1.1), (math.nan, 0.5)])
def test_weights_are_checked_first(folder: Path, weights: tuple[float, float]) -> None:
    with pytest.raises(InvalidWeights, match="sum to 1"):
        evaluate_collection(folder, weights=weights)


@pytest.mark.usefixtures("django_access")
def test_what_a_sweep_cannot_use(folder: Path) -> None:
    with pytest.raises(InvalidArgument, match="seed"):
        evaluate_collection(folder, sweep=True, seed=-1)
    (folder / "qrels.tsv").write_text("1\ta\t1\n")
    with pytest.raises(InvalidArgument, match="several queries"):
        evaluate_collection(folder, sweep=True)
    assert evaluate_collection(folder).queries == 1


@pytest.mark.usefixtures("django_access")
def test_a_compressed_corpus_qrels_in_a_folder_and_a_byte_order_mark(folder: Path) -> None:
    corpus = folder / "corpus.jsonl"
    with gzip.open(folder / "corpus.jsonl.gz", "wb") as file:
        file.write(corpus.read_bytes())
    corpus.unlink()
    qrels = folder / "qrels.tsv"
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_bytes(
        b"\xef\xbb\xbf" + qrels.read_bytes().replace(b"\n", b"\r\n\r\n")
    )
    qrels.unlink()
    assert list(evaluate_collection(folder).means["hybrid"].values()) == expected_means("hybrid")


# --- Embedding what has no vectors ------------------------------------------------


class Embedder:
    """Vectors by the first word; what else it does is up to `trouble`."""

    name, dimensions, batch_size = "first-word", 2, 8

    def __init__(self, trouble: str = "", fifo: str = "") -> None:
        self.trouble, self.fifo = trouble, fifo

    def embed_documents(self, texts: Sequence[str]) -> list[Vector]:
        if self.trouble == "overloaded":
            raise EmbedderOverloaded("The provider is on fire.", "Try again later.")
        if self.trouble == "bug":
            raise RuntimeError(self.trouble)
        if self.trouble == "wait":
            Path(self.fifo).write_text("embedding")
            signal.pause()
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> Vector:
        return {"tea": [0.0, 1.0], "Green": [0.6, 0.8]}.get(text.split(maxsplit=1)[0], [1.0, 0.0])


def embedding(**embedder_options: str) -> override_settings:
    return override_settings(
        CARTRITA_SEARCH={
            "EMBEDDER": f"{__name__}.Embedder",
            "EMBEDDER_OPTIONS": embedder_options,
            "RECORD_SEARCHES": True,
            "CACHE_SECONDS": 0,
        }
    )


@pytest.mark.usefixtures("django_access")
def test_a_folder_without_vectors_is_embedded(folder: Path, capsys: Any) -> None:
    without_vectors(folder)
    with embedding():
        outcome = evaluate_collection(folder)
    assert "Embedding with first-word: 4 of 4 (100 %)" in capsys.readouterr().err
    assert outcome.model == "first-word"
    # "tea" is nearest to b, then to a; c and d are as near to each other as to neither.
    assert outcome.means["keyword"]["R@100"] == pytest.approx((2 / 3 + 1) / 2)
    assert outcome.means["hybrid"]["RR@10"] == 1


@pytest.mark.usefixtures("django_access")
@pytest.mark.parametrize(
    ("trouble", "error"), [("overloaded", EmbedderOverloaded), ("bug", RuntimeError)]
)
def test_an_error_leaves_no_scratch_database(
    pg: psycopg.Connection, folder: Path, trouble: str, error: type[Exception]
) -> None:
    without_vectors(folder)
    with embedding(trouble=trouble), pytest.raises(error):
        evaluate_collection(folder, keep=True)
    assert scratch_databases(pg) == []
    assert list(connections) == ["default"]


@pytest.mark.usefixtures("clean_tables")
def test_ctrl_c_leaves_no_scratch_database(
    database: dict[str, Any], pg: psycopg.Connection, folder: Path, tmp_path: Path
) -> None:
    without_vectors(folder)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        [sys.executable, "manage.py", "evaluate_search", str(folder)],
        cwd=settings.BASE_DIR,
        env={
            "PATH": os.environ["PATH"],
            "ENV_FILE": os.devnull,
            "DEBUG": "true",
            "DATABASE_URL": "postgres://{user}@:{port}/{dbname}?host={host}".format(**database),
            "EMBEDDER": "tests.test_evaluation.Embedder",
            "EMBEDDER_OPTIONS": json.dumps({"trouble": "wait", "fifo": str(fifo)}),
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    assert fifo.read_text() == "embedding"  # opened for writing only once it embeds
    assert len(scratch_databases(pg)) == 1
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert "Interrupted; nothing is left behind." in said
    assert "Traceback" not in said
    assert scratch_databases(pg) == []


# --- The scratch database -----------------------------------------------------------


@pytest.fixture
def scratch_name(database: dict[str, Any], pg: psycopg.Connection) -> Iterator[str]:
    """The scratch database's name; whatever has it is dropped at the end."""
    name = f"{database['dbname']}_evaluation"
    yield name
    pg.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.mark.usefixtures("django_access")
def test_a_kept_database_can_be_looked_at_and_is_replaced(
    connect: Connect, pg: psycopg.Connection, folder: Path, scratch_name: str, capsys: Any
) -> None:
    pg.execute("UPDATE search_settings SET candidate_pool = 77, default_language = 'simple'")
    call_command("evaluate_search", folder, "--keep")
    assert f"Kept: the database {scratch_name}." in capsys.readouterr().err
    kept = connect(dbname=scratch_name)
    assert kept.execute(
        "SELECT source_id, language FROM search_documents ORDER BY 1"
    ).fetchall() == [(i, "simple") for i in "abcd"]
    assert scalar(kept, "SELECT candidate_pool FROM search_settings") == 77

    # Somebody looks at it: it is left alone.
    with pytest.raises(CommandError, match="is in use"):
        call_command("evaluate_search", folder)
    assert scalar(kept, "SELECT count(*) FROM search_documents") == 4
    kept.close()

    call_command("evaluate_search", folder)
    assert scratch_databases(pg) == []


@pytest.mark.usefixtures("django_access")
def test_a_database_of_that_name_which_is_not_ours_is_left_alone(
    pg: psycopg.Connection, folder: Path, scratch_name: str
) -> None:
    pg.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(scratch_name)))
    with pytest.raises(CommandError, match=r"is not of an evaluation\. It was left alone"):
        call_command("evaluate_search", folder)
    assert scratch_databases(pg) == [scratch_name]


@pytest.fixture
def evaluator(
    database: dict[str, Any], pg: psycopg.Connection, clean_tables: None
) -> Iterator[str]:
    """URL of a role that may log in and read what an evaluation reads of the live database."""
    pg.execute("CREATE ROLE evaluator LOGIN")
    pg.execute(
        "GRANT SELECT ON search_settings, retrieval_configs, django_migrations TO evaluator"
    )
    yield "postgres://evaluator@:{port}/{dbname}?host={host}".format(**database)
    pg.execute("DROP OWNED BY evaluator")
    pg.execute("DROP ROLE evaluator")


def test_a_role_that_may_not_is_told_what_it_lacks(
    manage: Manage, pg: psycopg.Connection, folder: Path, evaluator: str
) -> None:
    for statement, message in (
        ("ALTER ROLE evaluator NOCREATEDB", 'ALTER ROLE "evaluator" CREATEDB'),
        (
            "ALTER ROLE evaluator CREATEDB",
            "in template1, so that new databases have it: CREATE EXTENSION vector",
        ),
    ):
        pg.execute(statement)
        done = manage("evaluate_search", str(folder), DATABASE_URL=evaluator)
        assert done.returncode == 1
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert scratch_databases(pg) == []


@pytest.mark.usefixtures("clean_tables")
def test_a_live_database_that_is_not_migrated(
    manage: Manage, database: dict[str, Any], pg: psycopg.Connection, folder: Path
) -> None:
    url = "postgres://{user}@:{port}/template1?host={host}".format(**database)
    done = manage("evaluate_search", str(folder), DATABASE_URL=url)
    assert done.returncode == 1
    assert "Run: manage.py migrate" in done.stderr
    assert scratch_databases(pg) == []


# --- Bad input: folders -----------------------------------------------------------

Change = Callable[[Path], object]


def put(name: str, content: str | bytes) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def add(name: str, content: str | bytes) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + data)


def gone(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def array(what: str, values: Any) -> Change:
    return lambda folder: np.save(folder / f"{what}_emb.npy", np.array(values))


RAGGED = np.empty(4, object)
RAGGED[:] = [[1.0], [1.0, 0.0], [0.0], [1.0]]

BAD_FOLDERS: dict[str, tuple[Change, str]] = {
    "no corpus": (gone("corpus.jsonl"), r"no corpus\.jsonl and no corpus\.jsonl\.gz"),
    "no queries": (gone("queries.jsonl"), r"no queries\.jsonl"),
    "no qrels": (gone("qrels.tsv"), r"no qrels\.tsv and no qrels/test\.tsv"),
    "not JSON": (add("corpus.jsonl", '{"_id": '), r"corpus\.jsonl: line 5 is not JSON"),
    "nested": (add("queries.jsonl", "[" * 200_000), r"queries\.jsonl: line 5 is not JSON"),
    "no object": (add("queries.jsonl", "[]"), r"queries\.jsonl: line 5: a JSON object"),
    "no id": (add("corpus.jsonl", '{"text": "x"}'), r'line 5: there is no id under "_id"'),
    "no text": (add("corpus.jsonl", '{"_id": "e"}'), r'line 5: there is no text under "text"'),
    "title": (
        add("corpus.jsonl", '{"_id": "e", "text": "", "title": 7}'),
        r'line 5: there is no text under "title"',
    ),
    "NUL": (add("corpus.jsonl", r'{"_id": "e", "text": "a\u0000"}'), "line 5: .* holds NUL"),
    "surrogate": (add("queries.jsonl", r'{"_id": "e", "text": "\ud800"}'), "line 5: .* surrogate"),
    "twice": (
        add("corpus.jsonl", '{"_id": "a", "text": ""}'),
        r'line 5: the document "a" .*twice',
    ),
    "query twice": (add("queries.jsonl", '{"_id": 1, "text": ""}'), r'the query "1" is .*twice'),
    "latin-1": (
        add("corpus.jsonl", "{'é'}".encode("latin-1")),
        r"corpus\.jsonl: line 5 is not UTF",
    ),
    "two fields": (add("qrels.tsv", "1\ta\n"), r"qrels\.tsv: line 11: .* 2 fields"),
    "grade": (add("qrels.tsv", "1\ta\t+-1\n"), "line 11: the grade is not a whole number"),
    "fraction": (add("qrels.tsv", "1\ta\t0.5\n"), "line 11: the grade is not a whole number"),
    "high": (add("qrels.tsv", "1\ta\t1001\n"), "line 11: the grade is not .* up to 1000"),
    "graded twice": (add("qrels.tsv", "1\ta\t1\n"), "line 11: this document was graded 2"),
    "nothing": (put("qrels.tsv", "1\ta\t0\n"), "no query .* has a relevant document"),
    "one of two": (gone("query_emb.npy"), r"query_emb\.npy: there is no such file beside"),
    "no vector ids": (gone("corpus_ids.json"), r"corpus_ids\.json: there is no such file"),
    "ids": (put("corpus_ids.json", "{"), r"corpus_ids\.json: "),
    "nested ids": (put("corpus_ids.json", "[" * 200_000), r"corpus_ids\.json: "),
    "id list": (put("corpus_ids.json", "{}"), r"corpus_ids\.json: a list of ids"),
    "unknown id": (put("corpus_ids.json", '["a","b","c","x"]'), '"x" is not in the corpus'),
    "lacking id": (
        lambda folder: save_vectors(folder, "corpus", {"a": (1, 0), "b": (1, 0), "c": (1, 0)}),
        r'corpus_ids\.json: "d" of the corpus has no vector',
    ),
    "id twice": (
        lambda folder: save_rows(folder, "corpus", [*"abcdd"], [(1, 0)] * 5),
        '"d" is there twice',
    ),
    "count": (array("corpus", [[1.0, 0.0]] * 3), r"corpus_emb\.npy: 3 vectors, but .* names 4"),
    "mixed": (
        lambda folder: np.save(folder / "corpus_emb.npy", RAGGED, allow_pickle=True),
        r"corpus_emb\.npy: not an array of vectors of one length",
    ),
    "flat": (array("query", [1.0] * 4), r"query_emb\.npy: a two-dimensional array"),
    "integers": (
        array("query", [[1, 0]] * 4),
        r"query_emb\.npy: a two-dimensional array of floats",
    ),
    "other length": (array("query", [[1.0] * 3] * 4), r"query_emb\.npy: vectors of 3 .* have 2"),
    "NaN": (
        array("corpus", [[1.0, 0], [1, np.nan], [1, 0], [1, 0]]),
        r'corpus_emb\.npy: row 1, of "c", holds NaN or infinity',
    ),
    "zero": (
        array("query", [[1.0, 0], [1, 0], [1, 0], [0, 0]]),
        r'query_emb\.npy: row 3, of "1", is zero',
    ),
    "no array": (put("query_emb.npy", b""), r"query_emb\.npy: not an array"),
    "cut array": (put("query_emb.npy", b"\x93NUMPY\x01\x00"), r"query_emb\.npy: not an array"),
}


@pytest.mark.parametrize(("change", "message"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_a_folder_that_cannot_be_used_is_refused(
    folder: Path, change: Change, message: str
) -> None:
    assert read_collection(folder).documents == 4
    change(folder)
    with pytest.raises(UnreadableInput, match=message) as caught:
        read_collection(folder)
    assert str(folder) in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.hint.startswith("Nothing was evaluated.")


@pytest.mark.parametrize("cut", [slice(0, -9), slice(9, None)], ids=["end", "beginning"])
def test_a_broken_compressed_corpus(folder: Path, cut: slice) -> None:
    corpus = folder / "corpus.jsonl"
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(corpus.read_bytes())[cut])
    corpus.unlink()
    with pytest.raises(UnreadableInput, match=r"corpus\.jsonl\.gz: "):
        read_collection(folder)


@pytest.mark.usefixtures("clean_tables")
@pytest.mark.parametrize(
    ("arguments", "returncode", "message"),
    [
        (["nowhere"], 1, "nowhere: there is no such folder. Nothing was evaluated."),
        (["--live", "nowhere.tsv"], 1, "nowhere.tsv: No such file or directory."),
        (["--live", "nowhere"], 1, "a file .jsonl or .tsv is expected"),
        (["nowhere", "--weights", "1"], 1, "--weights takes two numbers"),
        (["nowhere", "--plot", "curve.pdf"], 1, "a picture is .png or .svg"),
        (["nowhere", "--plot", "nowhere/curve.svg"], 1, "there is no folder nowhere"),
        ([], 2, "one of the arguments DIR --live is required"),
        (["nowhere", "--live", "nowhere"], 2, "not allowed with"),
    ],
)
def test_a_refusal_is_one_line(
    manage: Manage,
    pg: psycopg.Connection,
    arguments: list[str],
    returncode: int,
    message: str,
) -> None:
    done = manage("evaluate_search", *arguments)
    assert done.returncode == returncode
    assert message in done.stderr.splitlines()[-1]
    assert returncode == 2 or done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert scratch_databases(pg) == []


@pytest.mark.usefixtures("clean_tables")
@pytest.mark.parametrize("package", ["ir_measures", "scipy", "numpy", "matplotlib"])
def test_a_missing_package_is_named(
    manage: Manage, folder: Path, tmp_path: Path, package: str
) -> None:
    without = tmp_path / "without"
    without.mkdir()
    (without / f"{package}.py").write_text(
        f"raise ModuleNotFoundError('No module named {package}', name='{package}')\n"
    )
    done = manage("evaluate_search", str(folder), "--plot", "x.svg", PYTHONPATH=str(without))
    assert done.returncode == 1
    assert package in done.stderr
    assert "pip install" in done.stderr
    assert done.stderr.count("\n") == 1


# --- Judgements on live documents ------------------------------------------------------


@pytest.fixture
def library(pg: psycopg.Connection, clean_tables: None) -> None:
    """Live documents: one of two chunks, one of somebody's own."""
    model = Embedder.name
    upsert(pg, "1", [0, 1], model, p_content="tea tea", p_chunk_index=0)
    upsert(pg, "1", [0.1, 1], model, p_content="tea leaves", p_chunk_index=1)
    upsert(pg, "2", [1, 0], model, p_content="coffee")
    upsert(pg, "3", [0.2, 1], model, p_content="secret tea blend", p_user_id=41)
    pg.execute("SELECT refresh_keyword_statistics()")


LINES: list[dict[str, Any]] = [
    {"query": "tea", "source_table": "notes", "source_id": "1", "grade": 2},
    {"query": "tea", "source_table": "notes", "source_id": 2, "grade": 0},
    {"query": "coffee", "source_table": "notes", "source_id": "2", "chunk_index": 0, "grade": 1},
    {"query": "coffee", "source_table": "notes", "source_id": "9", "grade": 1},
    {"query": "cocoa", "source_table": "notes", "source_id": "9", "grade": 1},
]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("library")
def test_live_judgements(pg: psycopg.Connection, tmp_path: Path) -> None:
    judgements = tmp_path / "judged.jsonl"
    write_lines(judgements, LINES)
    before = live_contents(pg)
    with embedding():
        outcome = evaluate_live(judgements, sweep=True)
    assert live_contents(pg) == before
    assert (outcome.name, outcome.documents, outcome.model) == ("judged.jsonl", 4, "first-word")
    assert (outcome.queries, outcome.judgements) == (2, 3)
    assert outcome.left_out == {"queries": 1, "judgements": 2}
    # Both chunks of row 1 are at the top; the row is found once, at rank 1.
    for means in outcome.means.values():
        assert means == {"nDCG@10": 1, "R@100": 1, "RR@10": 1}
    assert outcome.sweep is not None
    assert "Keep them." in outcome.sweep.verdict
    assert scratch_databases(pg) == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("library")
def test_a_judged_chunk_is_that_chunk_and_a_judged_row_its_best_one(tmp_path: Path) -> None:
    judgements = tmp_path / "judged.tsv"
    header = "query\tsource_table\tsource_id\tchunk_index\tgrade\n"
    with embedding():
        # By words and by meaning "tea tea" (chunk 0) comes before "tea leaves" (chunk 1).
        judgements.write_text(f"{header}tea\tnotes\t1\t1\t1\n")
        assert evaluate_live(judgements).means["keyword"]["RR@10"] == pytest.approx(1 / 2)
        judgements.write_text(f"{header}tea\tnotes\t1\t\t1\n")
        assert evaluate_live(judgements).means["keyword"]["RR@10"] == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("library")
def test_a_user_s_query_searches_what_they_may_see(pg: psycopg.Connection, tmp_path: Path) -> None:
    owner, other = (User.objects.create(username=name) for name in ("owner", "other"))
    pg.execute("UPDATE search_documents SET user_id = %s WHERE source_id = '3'", [owner.pk])
    judgements = tmp_path / "judged.jsonl"
    line = {"query": "secret", "source_table": "notes", "source_id": "3", "grade": 1}
    found = {}
    with embedding():
        for user in ("owner", owner.pk, "other", None):
            write_lines(judgements, [line | {"user": user}])
            found[user] = evaluate_live(judgements).means["keyword"]["R@100"]
    assert found == {"owner": 1, owner.pk: 1, "other": 0, None: 1}
    assert other.pk != owner.pk


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("library")
def test_live_searches_write_nothing(tmp_path: Path) -> None:
    judgements = tmp_path / "judged.jsonl"
    write_lines(judgements, LINES)
    connection.ensure_connection()
    raw: psycopg.Connection = connection.connection
    with embedding(), writing_nothing(raw):
        assert evaluate_live(judgements, sweep=True).queries == 2
        assert metrics.flush() == 0


class Closed(StringIO):
    """A pipe whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("library")
def test_a_closed_pipe_is_no_file_that_cannot_be_written(tmp_path: Path) -> None:
    judgements = tmp_path / "judged.jsonl"
    write_lines(judgements, LINES)
    with embedding(), pytest.raises(BrokenPipeError):
        call_command("evaluate_search", live=judgements, stdout=Closed())


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": None}, 'there is no text under "query"'),
        ({"source_table": 3}, 'there is no text under "source_table"'),
        ({"source_id": ""}, 'there is no id under "source_id"'),
        ({"source_id": "a\x00"}, "holds NUL"),
        ({"chunk_index": "one"}, "chunk_index is not a whole number"),
        ({"chunk_index": 1.5}, "chunk_index is not a whole number"),
        ({"chunk_index": 10**12}, "chunk_index is not a whole number"),
        ({"grade": None}, "the grade is not a whole number"),
        ({"grade": True}, "the grade is not a whole number"),
        ({"user": "nobody"}, "there is no user 'nobody'"),
        ({"user": 10**30}, "there is no user"),
        ({"user": []}, 'there is no id under "user"'),
    ],
)
def test_a_line_that_cannot_be_used_is_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    judgements = tmp_path / "judged.jsonl"
    write_lines(judgements, [LINES[0], LINES[2] | change])
    with pytest.raises(UnreadableInput, match=message) as caught:
        read_judgements(judgements, "default")
    assert f"{judgements}: line 2" in caught.value.message


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no query has a relevant document in the database"),
        ("query\tsource_table\tsource_id\tgrade\ntea\tnotes\t9\t1\n", "no query has a relevant"),
        ("query\tgrade\ntea\tnotes\t1\t1\n", "line 2: 4 columns, but the first line names 2"),
        ("query\tgrade\ntea\t1\n", 'line 2: there is no text under "source_table"'),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path: Path, text: str, message: str) -> None:
    judgements = tmp_path / "judged.tsv"
    judgements.write_text(text)
    with pytest.raises(UnreadableInput, match=message):
        read_judgements(judgements, "default")


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("library")
def test_the_judgements_in_the_documentation_can_be_read(
    pg: psycopg.Connection, tmp_path: Path
) -> None:
    page = (settings.BASE_DIR / "docs" / "weights.md").read_text(encoding="utf-8")
    judgements = tmp_path / "judged.jsonl"
    judgements.write_text(page.split("```json\n")[1].split("```")[0])
    for name in ("shutil.copytree", "shutil.copy", "zipfile.ZipFile.extractall"):
        upsert(pg, name, [1, 0], Embedder.name, source_table="python_stdlib")
    read = read_judgements(judgements, "default")
    assert (len(read.queries), read.count, read.left_out["judgements"]) == (2, 3, 0)


# --- The curve --------------------------------------------------------------------


@pytest.mark.usefixtures("clean_tables")
@pytest.mark.django_db(transaction=True)
def test_a_curve_s_rankings_are_those_of_hybrid_search(pg: psycopg.Connection) -> None:
    rng = np.random.default_rng(7)
    words = [f"w{n}" for n in range(60)]
    shares = 1 / np.arange(1, 61)
    documents = [" ".join(rng.choice(words, 12, p=shares / shares.sum())) for _ in range(900)]
    for number, text in enumerate(documents):
        # Whole numbers make ties, which ids must break.
        vector = (rng.integers(0, 3, 4) + np.eye(4)[3]).tolist()
        upsert(pg, str(number), vector, p_content=text)
    pg.execute("DELETE FROM embeddings WHERE source_id LIKE '%7'")
    pg.execute("SELECT refresh_keyword_statistics()")
    texts = ["w1 w30", "w50", "w0 w1 w2", "of the", "unheard", "w40 w41 w42 w43"]

    windows = hybrid_windows("mini", "default")
    options: Options = {"model": "mini", "limit": max(window.pool for window in windows)}
    for text in texts:
        vector = rng.random(4).tolist()
        candidates = Candidates.fetch(JudgedQuery(text, {}), vector, options)
        for weight in (0.0, 0.05, 0.35, 0.5, 0.7, 0.95, 1.0):
            found = pg.execute(
                "SELECT source_id FROM hybrid_search(%s, %s::vector, %s, %s, match_count => 100)",
                [text, str(vector), weight, 1 - weight],
            ).fetchall()
            assert candidates.ranking(weight, windows) == [Key("notes", i) for (i,) in found], (
                text,
                weight,
            )


def test_the_present_weight_is_on_the_grid() -> None:
    assert grid(0.7) == GRID
    assert grid(0.72) == (*GRID[:15], 0.72, *GRID[15:])


def scores_of(rows: Any) -> dict[str, Any]:
    return {"nDCG@10": np.asarray(rows, float)}


def noise(queries: int, seed: int = 3) -> Any:
    # Seeds apart from those of the resampling, whose signs would else follow the noise.
    return np.random.default_rng(1000 + seed).random((len(GRID), queries))


def test_an_obviously_better_weight_is_significant() -> None:
    rows = noise(100) * 0.1
    rows[13] += 0.5
    sweep = judge(GRID, scores_of(rows), 0.7, seed=0)
    assert (sweep.best, sweep.present) == (13, 14)
    gain = sweep.gain
    assert gain.mean == pytest.approx(rows[13].mean() - rows[14].mean())
    assert 0.4 < gain.low < gain.mean < gain.high < 0.6
    assert gain.p == pytest.approx(1 / 10_000)
    assert gain.significant
    assert sweep.verdict.startswith("0.65/0.35 scores nDCG@10 0.5")
    assert "above the present 0.7/0.3: significant (95 % interval 0.4" in sweep.verdict
    assert sweep.verdict.endswith("100 queries). Take 0.65/0.35.")


def test_a_difference_that_some_queries_like_and_some_do_not_is_not_significant() -> None:
    rows = np.zeros((len(GRID), 100))
    rows[13, :52], rows[13, 52:] = 0.1, -0.1
    sweep = judge(GRID, scores_of(rows), 0.7, seed=0)
    assert sweep.best == 13
    assert sweep.gain.low < 0 < sweep.gain.mean < sweep.gain.high
    assert sweep.gain.p > 0.3
    assert "0.004 above the present 0.7/0.3: not significant" in sweep.verdict
    assert sweep.verdict.endswith("Keep the present weights.")


def test_equal_weights_keep_the_present_ones() -> None:
    sweep = judge(GRID, scores_of(np.tile(noise(50)[0], (len(GRID), 1))), 0.7, seed=0)
    assert sweep.best == sweep.present
    assert (sweep.gain.mean, sweep.gain.low, sweep.gain.high, sweep.gain.p) == (0, 0, 0, 1)
    assert not sweep.gain.significant
    assert sweep.verdict.endswith("Keep them.")


def test_of_equally_good_weights_the_nearest_to_the_present_is_best() -> None:
    rows = np.zeros((len(GRID), 10))
    rows[[3, 12, 20]] = 1
    assert judge(GRID, scores_of(rows), 0.7, seed=0).best == 12


def test_the_best_of_mere_noise_is_seldom_significant() -> None:
    """Its interval alone would often say so, for all weights are best somewhere."""
    sweeps = [judge(GRID, scores_of(noise(60, seed)), 0.7, seed) for seed in range(60)]
    assert sum(sweep.gain.low > 0 for sweep in sweeps) >= 8
    assert sum(sweep.gain.significant for sweep in sweeps) <= 4


def test_a_few_queries_are_never_significant() -> None:
    rows = np.zeros((len(GRID), 3))
    rows[13] = 0.3, 0.2, 0.4
    gain = judge(GRID, scores_of(rows), 0.7, seed=0).gain
    assert gain.low > 0
    assert gain.p == pytest.approx(1 / 2**3, abs=0.02)
    assert not gain.significant


def test_a_seed_decides() -> None:
    rows = noise(40)
    first, again, other = (judge(GRID, scores_of(rows), 0.7, seed) for seed in (1, 1, 2))
    assert first.gain == again.gain
    assert first.gain != other.gain


# --- The picture --------------------------------------------------------------------


def test_the_band_is_of_the_difference_to_the_present() -> None:
    rows = noise(50)
    sweep = judge(GRID, scores_of(rows), 0.7, seed=0)
    low, high = band(sweep)
    curve = sweep.curve()
    assert low[sweep.present] == high[sweep.present] == pytest.approx(curve[sweep.present])
    others = np.arange(len(GRID)) != sweep.present
    assert (low < curve)[others].all()
    assert (curve < high)[others].all()


def test_pictures(tmp_path: Path) -> None:
    sweep = judge(GRID, scores_of(noise(50)), 0.7, seed=0)
    for path in (tmp_path / "curve.png", tmp_path / "curve.svg"):
        check_plot(path)
        draw(sweep, "drinks", path)
    png = (tmp_path / "curve.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert png.endswith(b"IEND\xaeB`\x82")
    root = ET.parse(tmp_path / "curve.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    said = " ".join(root.itertext())
    best = sweep.weights[sweep.best]
    for text in ("drinks, 50 queries", "nDCG@10", "present: 0.7/0.3", f"best: {best:g}/"):
        assert text in said
    draw(sweep, "drinks", tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == (tmp_path / "curve.svg").read_text()


# --- A real collection -----------------------------------------------------------------


@pytest.mark.slow
@needs_shared_data
@pytest.mark.usefixtures("django_access")
def test_a_real_collection(pg: psycopg.Connection) -> None:
    outcome = evaluate_collection(SHARED_DATA / "scifact", sweep=True)
    assert (outcome.documents, outcome.queries, outcome.judgements) == (5183, 300, 339)
    assert not any(outcome.left_out.values())
    means = {search: by["nDCG@10"] for search, by in outcome.means.items()}
    assert means["hybrid"] >= 0.73
    assert means["hybrid"] > means["rrf"] > means["keyword"] - 0.02 > means["vector"]
    assert outcome.means["hybrid"]["R@100"] >= 0.95
    # The curve is arithmetic; where a search of the same weights ran, they agree.
    assert outcome.sweep is not None
    curve = dict(zip(outcome.sweep.weights, outcome.sweep.curve(), strict=True))
    for search, weight in (("keyword", 0.0), ("hybrid", 0.7)):
        assert curve[weight] == pytest.approx(means[search], abs=0.001)
    assert 0.55 <= outcome.sweep.weights[outcome.sweep.best] <= 0.8
    assert scratch_databases(pg) == []
