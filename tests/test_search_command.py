"""``manage.py search``: its options, its output, its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from io import StringIO
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.test import override_settings

from cartrita_search.embedders import get_embedder
from cartrita_search.ingest import Document, upsert_documents
from cartrita_search.models import RetrievalConfig
from tests.conftest import Manage

TEXTS = {
    "soup": ("Tomato soup", "Boil tomatoes with basil for twenty minutes."),
    "bread": ("Bread", "Knead flour, water and yeast; bake for forty minutes."),
    "engine": ("Engine", "A motor that burns petrol turns the wheels."),
    "minutes": ("Minutes", "Minutes of the meeting of the board: twenty items."),
}


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("search", *arguments, stdout=out)
    return out.getvalue()


def found(*arguments: str) -> list[dict[str, Any]]:
    hits: list[dict[str, Any]] = json.loads(run(*arguments, "--json"))
    return hits


def names(*arguments: str) -> list[str]:
    return [hit["source_id"] for hit in found(*arguments)]


def store(source: str, texts: dict[str, tuple[str, str]], user_id: int | None = None) -> None:
    embedder = get_embedder()
    vectors = embedder.embed_documents([" ".join(text) for text in texts.values()])
    upsert_documents(
        [
            Document(source, name, *text, vector, user_id=user_id)
            for (name, text), vector in zip(texts.items(), vectors, strict=True)
        ],
        model=embedder.name,
    )


@pytest.fixture
def documents(db: None) -> None:
    store("articles", TEXTS)


@pytest.mark.usefixtures("documents")
class TestOutput:
    def test_the_table(self) -> None:
        lines = run("car motor").splitlines()
        assert lines[0].split() == [
            *("#", "title", "source", "matched_by", "cosine", "BM25", "score"),
        ]
        assert lines[2].split()[:4] == ["1", "Engine", "articles/engine#0", "hybrid"]
        assert len(lines) == 2 + len(TEXTS)

    def test_a_document_without_a_title_shows_its_text(self) -> None:
        store("notes", {"1": ("", "The violin has four strings.")})
        assert "The violin has four strings." in run("violin strings", "--limit", "1")

    def test_json_carries_every_score(self) -> None:
        best = found("car motor")[0]
        assert best["source_id"] == "engine"
        assert best["content"] == TEXTS["engine"][1]
        assert best["matched_by"] == "hybrid"
        assert 0 < best["vector_similarity"] < 1 < best["hybrid_score"] + best["keyword_score"]

    def test_nothing_found_is_an_answer(self) -> None:
        assert run("xylophone", "--keyword-only") == "Nothing was found.\n"
        assert found("xylophone", "--keyword-only") == []


@pytest.mark.usefixtures("documents")
class TestOptions:
    def test_limit(self) -> None:
        assert len(found("minutes", "--limit", "2")) == 2

    def test_source(self) -> None:
        store("notes", {"7": TEXTS["soup"]})
        assert names("tomato soup", "--source", "notes") == ["7"]
        assert "7" not in names("tomato soup", "--source", "articles")

    def test_several_sources(self) -> None:
        store("notes", {"7": TEXTS["soup"]})
        store("drafts", {"8": TEXTS["soup"]})
        both = names("tomato soup", "--source", "notes", "--source", "drafts")
        assert sorted(both) == ["7", "8"]

    def test_tags(self) -> None:
        upsert_documents(
            [
                Document("tagged", "both", "", "tomato", tags=["a", "b"]),
                Document("tagged", "one", "", "tomato", tags=["a"]),
            ]
        )
        assert names("tomato", "--keyword-only", "--tag", "a", "--tag", "b") == ["both"]
        assert len(names("tomato", "--keyword-only", "--tag", "a")) == 2

    def test_offset_goes_on_where_the_page_before_ended(self) -> None:
        whole = names("minutes")
        assert names("minutes", "--offset", "2", "--limit", "2") == whole[2:4]
        lines = run("minutes", "--offset", "2", "--limit", "1").splitlines()
        assert lines[2].split()[0] == "3"

    def test_re_ranking_and_explanation_in_the_json(self) -> None:
        assert {hit["rerank_score"] for hit in found("car motor")} == {None}
        hits = found("car motor", "--rerank")
        assert None not in {hit["rerank_score"] for hit in hits}
        assert hits[0]["explanation"]["vector_rank"] == 1

    def test_model(self) -> None:
        assert names("car motor", "--model", "all-MiniLM-L6-v2")[0] == "engine"

    def test_keywords_alone_need_no_embedder(self) -> None:
        with override_settings(CARTRITA_SEARCH=settings.CARTRITA_SEARCH | {"EMBEDDER": None}):
            hits = found("twenty minutes", "--keyword-only")
        assert {hit["matched_by"] for hit in hits} == {"keyword"}
        assert {hit["vector_similarity"] for hit in hits} == {None}
        assert {hit["source_id"] for hit in hits} == {"soup", "bread", "minutes"}

    def test_vectors_alone_use_no_words(self) -> None:
        hits = found("automobile", "--vector-only")
        assert hits[0]["source_id"] == "engine"
        assert {hit["keyword_score"] for hit in hits} == {None}

    def test_weights(self) -> None:
        text = "how many minutes must dough bake"
        by_meaning = names(text, "--vector-only")
        assert names(text, "--weights", "1,0") == by_meaning
        assert found(text, "--weights", "0,1")[0]["hybrid_score"] == pytest.approx(1)
        half = found(text, "--weights", "0.5,0.5")[0]
        assert half["hybrid_score"] == pytest.approx(half["vector_similarity"] / 2 + 0.5)

    def test_a_user_sees_their_own_and_what_is_shared(self) -> None:
        users = get_user_model().objects
        ann, bob = users.create_user("ann"), users.create_user("bob")
        store("diary", {"ann's": ("Soup", "My tomato soup.")}, ann.pk)
        store("diary", {"bob's": ("Soup", "My tomato soup.")}, bob.pk)

        assert set(names("tomato soup", "--user", "ann")) == {*TEXTS, "ann's"}
        assert names("tomato soup", "--user", str(bob.pk)) == names("tomato soup", "--user", "bob")
        assert set(names("tomato soup")) == {*TEXTS, "ann's", "bob's"}

    def test_a_user_s_own_weights_hold_unless_others_are_given(self) -> None:
        ann = get_user_model().objects.create_user("ann")
        RetrievalConfig.objects.create(user=ann, vector_weight=0, keyword_weight=1, max_results=1)
        (best,) = found("twenty minutes", "--user", "ann")
        assert best["hybrid_score"] == pytest.approx(1)
        (best,) = found("twenty minutes", "--user", "ann", "--weights", "1,0")
        assert best["hybrid_score"] == pytest.approx(best["vector_similarity"])

    def test_a_name_of_digits_goes_before_an_id(self) -> None:
        users = get_user_model().objects
        ann = users.create_user("ann")
        digits = users.create_user(str(ann.pk))
        store("diary", {"secret": ("Soup", "My tomato soup.")}, digits.pk)
        assert "secret" in names("tomato soup", "--user", str(ann.pk))


@pytest.mark.usefixtures("documents")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--user", "nobody"], "There is no user 'nobody'"),
        (["--user", "987654321"], "There is no user '987654321'"),
        (["--user", "9" * 40], "There is no user '9999"),
        (["--user", "\udcff"], "surrogates not allowed"),  # a byte that is no UTF-8
        (["--source", "artikles"], 'There are no documents of source "artikles"'),
        (["--weights", "much"], "--weights takes two numbers"),
        (["--weights", "0.5"], "--weights takes two numbers"),
        (["--weights", "0.2,0.3,0.5"], "--weights takes two numbers"),
        (["--weights", "1,1"], "sum to 1"),
        (["--weights", "nan,nan"], "sum to 1"),
        (["--limit", "0"], "must be between 1 and"),
        (["--model", "absent"], "absent"),
        (["--weights", "1,0", "--keyword-only"], "not allowed with"),
        (["--vector-only", "--keyword-only"], "not allowed with"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(CommandError) as caught:
        run("soup", *arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("documents")
def test_no_embedder() -> None:
    with (
        override_settings(CARTRITA_SEARCH=settings.CARTRITA_SEARCH | {"EMBEDDER": None}),
        pytest.raises(CommandError, match="No embedder is configured"),
    ):
        run("soup")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["soup", "--keyword-only"], 0, "Nothing was found."),
        (["soup", "--limit", "0"], 1, "must be between 1 and"),
        (["soup", "--weights", "1,0", "--vector-only"], 2, "not allowed with"),
        ([], 2, "required: text"),
    ],
)
def test_the_exit_status(manage: Manage, arguments: list[str], status: int, said: str) -> None:
    done = manage("search", *arguments)
    assert done.returncode == status
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


# --- manage.py ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgres://nobody:secret@127.0.0.1:1/none", "Connection refused"),
        ("postgres://nobody:secret@:{port}/{dbname}?host={host}", "nobody"),
        ("postgres://{user}@:{port}/none?host={host}", "none"),
    ],
)
@pytest.mark.parametrize(
    "arguments",
    [("search", "soup"), ("sync_embeddings", "--dry-run"), ("embedding_models", "list")],
    ids=" ".join,
)
def test_a_database_that_cannot_be_had_is_one_line(
    manage: Manage, database: dict[str, Any], arguments: Sequence[str], url: str, said: str
) -> None:
    done = manage(*arguments, DATABASE_URL=url.format(**database))
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("OperationalError: ")
    assert said in line
    assert "secret" not in line


def test_a_reader_that_has_gone_and_ctrl_c_leave_no_traceback(
    manage_environment: dict[str, str],
) -> None:
    def run_until_end(*arguments: str) -> tuple[int, str]:
        with subprocess.Popen(
            [sys.executable, "manage.py", *arguments],
            cwd=settings.BASE_DIR,
            env=manage_environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            complaints = process.stderr.read()
        return process.returncode, complaints

    assert run_until_end("search", "--keyword-only", "soup") == (141, "")
    assert run_until_end("shell", "--no-imports", "-c", "raise KeyboardInterrupt") == (130, "")
