"""A project's own rows kept in step: registration, runs, and runs that were killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.checks import Tags, run_checks
from django.core.management import CommandError, call_command
from django.db import connection, connections, models
from django.test.utils import CaptureQueriesContext

from cartrita_search import sources
from cartrita_search.errors import InvalidArgument
from cartrita_search.models import KeywordCorpus, SearchDocument, SourceCheckpoint
from cartrita_search.sources import SyncReport, find_sources, register_source, sync_source
from tests.conftest import Connect, Manage
from tests.library.models import Article, Author, Letter, Page
from tests.postgres import row_versions

TABLES: list[type[models.Model]] = [Author, Article, Letter, Page]
LIBRARY = {"DJANGO_SETTINGS_MODULE": "tests.library.settings"}


@pytest.fixture
def library(transactional_db: None, clean_tables: None) -> Iterator[None]:
    """The app's tables, empty."""
    with connection.schema_editor() as editor:
        for model in TABLES:
            editor.create_model(model)
    yield
    with connection.schema_editor() as editor:
        for model in reversed(TABLES):
            editor.delete_model(model)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No source is registered, whatever other tests did."""
    monkeypatch.setattr(sources, "_registry", {})


def register(**changes: Any) -> sources.Source:
    return register_source(Article, **{"title": "headline", "content": "body"} | changes)


def articles(count: int, **fields: Any) -> list[Article]:
    made = [Article(headline=f"Headline {n}", body=f"Body {n}.", **fields) for n in range(count)]
    return list(Article.objects.bulk_create(made))


def counts(report: SyncReport) -> tuple[int, int, int, int, int]:
    return (report.inserted, report.updated, report.unchanged, report.deleted, report.refused)


def contents(source_table: str = "library_article") -> dict[str, str]:
    """The text of each document by the key of its row; of chunks by ``key#chunk``."""
    rows = SearchDocument.objects.filter(source_table=source_table)
    return {
        f"{key}#{chunk}" if chunk else key: content
        for key, chunk, content in rows.values_list("source_id", "chunk_index", "content")
    }


# --- In step ------------------------------------------------------------------


@pytest.mark.usefixtures("library")
def test_every_value_is_a_field_or_computed() -> None:
    ada = User.objects.create_user("ada")
    author = Author.objects.create(name="Ada", person=ada)
    article = Article.objects.create(
        headline="Engines",
        body="The Analytical Engine.",
        author=author,
        labels=["machines", "history"],
        published=date(1843, 9, 1),
    )
    sync_source(
        register(
            owner="author__person",
            tags="labels",
            language=lambda _: "simple",
            metadata=lambda row: {"published": row.published, "author": row.author.name},
        )
    )
    sync_source(register(source_table="second", owner=lambda row: row.author.person))

    stored, second = SearchDocument.objects.order_by("source_table")
    assert (stored.source_table, stored.source_id) == ("library_article", str(article.pk))
    assert (stored.title, stored.content) == ("Engines", "The Analytical Engine.")
    assert (stored.user_id, stored.tags) == (ada.pk, ["machines", "history"])
    assert (stored.language, stored.chunk_index) == ("simple", 0)
    assert stored.metadata == {"published": "1843-09-01", "author": "Ada"}
    assert (second.user_id, second.language, second.metadata) == (ada.pk, "english", {})


@pytest.mark.usefixtures("library")
def test_nobody_on_the_way_to_the_owner_is_everybody() -> None:
    Article.objects.create(headline="No author")
    Article.objects.create(headline="No person", author=Author.objects.create(name="Anonymous"))

    assert counts(sync_source(register(owner="author__person"))) == (2, 0, 0, 0, 0)

    assert SearchDocument.objects.filter(user=None, content="").count() == 2


@pytest.mark.usefixtures("library")
def test_a_row_that_comes_to_be_nobody_s_is_shared() -> None:
    ada = User.objects.create_user("ada")
    (article,) = articles(1, author=Author.objects.create(name="Ada", person=ada))
    source = register(owner="author__person")
    sync_source(source)
    assert SearchDocument.objects.get().user_id == ada.pk

    Article.objects.filter(pk=article.pk).update(author=None)
    assert counts(sync_source(source)) == (0, 1, 0, 0, 0)
    assert SearchDocument.objects.get().user_id is None


@pytest.mark.usefixtures("library")
def test_many_changes_end_with_counting_the_words() -> None:
    articles(30)
    source = register()
    sync_source(source, dry_run=True)
    assert KeywordCorpus.objects.count() == 0
    sync_source(source)
    assert KeywordCorpus.objects.get().documents == 30
    articles(3)
    sync_source(source)
    assert KeywordCorpus.objects.get().documents == 30
    Article.objects.filter(pk__in=Article.objects.order_by("pk")[:4].values("pk")).delete()
    sync_source(source)
    assert KeywordCorpus.objects.get().documents == 29


@pytest.mark.usefixtures("library")
def test_a_run_takes_up_what_changed_since_the_last_and_writes_no_more(
    pg: psycopg.Connection,
) -> None:
    first, second, third = articles(3)
    source = register()
    assert counts(sync_source(source)) == (3, 0, 0, 0, 0)

    before = row_versions(pg, "search_documents")
    assert counts(sync_source(source)) == (0, 0, 3, 0, 0)
    assert row_versions(pg, "search_documents") == before

    # Past save() and every signal.
    Article.objects.filter(pk=second.pk).update(body="Edited.")
    Article.objects.filter(pk=third.pk).delete()
    (fourth,) = articles(1)
    report = sync_source(source)
    assert (*counts(report), report.rows) == (1, 1, 1, 1, 0, 3)
    assert contents() == {
        str(first.pk): "Body 0.",
        str(second.pk): "Edited.",
        str(fourth.pk): "Body 0.",
    }


def keyed_rows(model: type[models.Model]) -> list[models.Model]:
    """Seven rows whose keys do not come in the order of their making."""
    if model is Article:
        keys: list[Any] = [900, 5, 60, -3, 2**31 + 1, 7, 10]
        made: list[Any] = [Article(pk=key, headline="", body=str(key)) for key in keys]
    elif model is Letter:
        made = [Letter(pk=(key := uuid.uuid4()), text=str(key)) for _ in range(7)]
    else:
        keys = ["b", "A", "a b", "ä", "Z/1", "0", "%_\\"]
        made = [Page(pk=key, text=key) for key in keys]
    return list(model._default_manager.bulk_create(made))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("model", [Article, Letter, Page])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 500])
def test_keys_of_every_type_in_batches_of_every_size(
    model: type[models.Model], batch_size: int
) -> None:
    rows = keyed_rows(model)
    source = register_source(
        model, content="body" if model is Article else "text", source_table="keyed"
    )
    steps: list[int] = []
    report = sync_source(source, batch_size=batch_size, progress=steps.append)
    assert counts(report) == (7, 0, 0, 0, 0)
    assert sum(steps) == report.rows == 7
    assert max(steps) == min(batch_size, 7)
    assert contents("keyed") == {str(row.pk): str(row.pk) for row in rows}

    gone = rows[::2]
    model._default_manager.filter(pk__in=[row.pk for row in gone]).delete()
    assert counts(sync_source(source, batch_size=batch_size)) == (0, 0, 3, 4, 0)
    assert contents("keyed").keys() == {str(row.pk) for row in rows[1::2]}
    assert SourceCheckpoint.objects.count() == 0


@pytest.mark.usefixtures("library")
def test_documents_that_no_row_can_have_go_and_other_sources_stay() -> None:
    (article,) = articles(1)
    source = register()
    wrong = ["abc", f"0{article.pk}", "9" * 400, "1.0", "", " ", str(article.pk + 1)]
    for key in wrong:
        SearchDocument.objects.create(source_table="library_article", source_id=key or "é")
    SearchDocument.objects.create(source_table="notes", source_id="abc")

    assert counts(sync_source(source, batch_size=2, prune=False)) == (1, 0, 0, 0, 0)
    assert len(contents()) == len(wrong) + 1
    assert counts(sync_source(source, batch_size=2)) == (0, 0, 1, len(wrong), 0)
    assert contents().keys() == {str(article.pk)}
    assert contents("notes").keys() == {"abc"}


@pytest.mark.usefixtures("library")
def test_rows_that_the_queryset_leaves_out_are_no_documents() -> None:
    articles(2, labels=["draft"])
    articles(2)
    source = register(
        queryset=lambda: Article.objects.exclude(labels__contains=["draft"]).order_by("-headline")
    )
    assert counts(sync_source(source, batch_size=1)) == (2, 0, 0, 0, 0)

    Article.objects.filter(labels=[]).order_by("pk").update(labels=["draft"])
    assert counts(sync_source(source)) == (0, 0, 0, 2, 0)


@pytest.mark.usefixtures("library")
def test_a_row_that_shrinks_loses_its_extra_chunks() -> None:
    Page.objects.create(slug="a", text="one. two. three")
    Page.objects.create(slug="b", text="four. five")
    source = register_source(Page, content="text", chunk=lambda text: text.split(". "))
    table = "library_page"
    assert counts(sync_source(source)) == (5, 0, 0, 0, 0)
    assert contents(table) == {
        "a": "one",
        "a#1": "two",
        "a#2": "three",
        "b": "four",
        "b#1": "five",
    }

    Page.objects.filter(slug="a").update(text="one")
    assert counts(sync_source(source, prune=False)) == (0, 0, 3, 2, 0)
    assert contents(table) == {"a": "one", "b": "four", "b#1": "five"}

    empty = register_source(Page, content="text", chunk=lambda _: [], source_table="pages")
    SearchDocument.objects.create(source_table="pages", source_id="a")
    assert counts(sync_source(empty, prune=False)) == (0, 0, 0, 1, 0)


@pytest.mark.usefixtures("library")
def test_relations_are_not_followed_row_by_row() -> None:
    author = Author.objects.create(name="Ada")
    source = register(title="author__name", owner="author__person")

    def queries(count: int) -> int:
        articles(count, author=author)
        with CaptureQueriesContext(connection) as captured:
            sync_source(source)
        return sum("library_author" in query["sql"] for query in captured)

    assert queries(1) == queries(20)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("title", ZeroDivisionError("none left"), "ZeroDivisionError: none left"),
        ("tags", "a, b", "the tags must be a list of texts, not the text 'a, b'"),
        ("tags", 3, "not iterable"),
        ("owner", "ada", "the owner must be a person or an integer key, not 'ada'"),
        ("owner", True, "not True"),
        ("metadata", ["a"], "the metadata must be a dict, not list"),
        ("metadata", {"a": object()}, "not JSON serializable"),
        ("language", "klingon", "klingon"),
        ("title", "a\0b", ""),
        ("title", "a\ud800b", ""),
    ],
)
def test_a_row_that_cannot_be_stored_is_refused_alone(name: str, value: Any, message: str) -> None:
    rows = articles(5)
    source = register()
    sync_source(source)
    Article.objects.update(body="Edited.")

    def getter(row: Article) -> Any:
        if row.pk != rows[2].pk:
            return None
        if isinstance(value, Exception):
            raise value
        return value

    report = sync_source(register(source_table="with values", **{name: getter}), batch_size=2)
    assert counts(report) == (4, 0, 0, 0, 1)
    (refusal,) = report.refusals
    assert (refusal.source_table, refusal.source_id) == ("with values", str(rows[2].pk))
    assert message in refusal.message
    assert len(contents("with values")) == 4
    assert SourceCheckpoint.objects.count() == 0


@pytest.mark.usefixtures("library")
def test_a_refused_row_keeps_the_documents_it_had() -> None:
    rows = articles(2)
    allowed = {row.pk for row in rows}

    def title(row: Article) -> str:
        if row.pk not in allowed:
            raise ValueError("not allowed")
        return row.headline

    source = register(title=title)
    sync_source(source)
    Article.objects.update(body="Edited.")
    allowed.remove(rows[0].pk)

    assert counts(sync_source(source)) == (0, 1, 0, 0, 1)
    assert contents() == {str(rows[0].pk): "Body 0.", str(rows[1].pk): "Edited."}


@pytest.mark.usefixtures("library")
def test_a_dry_run_tells_what_the_run_after_it_does(pg: psycopg.Connection) -> None:
    rows = articles(7)
    source = register(chunk=lambda text: text.split(". "))
    sync_source(source)
    Article.objects.filter(pk=rows[0].pk).delete()
    Article.objects.filter(pk=rows[1].pk).update(body="Edited. And longer.")
    Article.objects.filter(pk=rows[2].pk).update(body="Edited")
    articles(2)
    before = row_versions(pg, "search_documents"), contents()

    dry = sync_source(source, batch_size=3, dry_run=True)
    assert (row_versions(pg, "search_documents"), contents()) == before
    assert SourceCheckpoint.objects.count() == 0
    assert sync_source(source, batch_size=3) == dry
    assert counts(dry) == (3, 2, 4, 1, 0)


@pytest.mark.usefixtures("library")
def test_no_batch_of_nothing() -> None:
    with pytest.raises(InvalidArgument, match="at least 1, not 0"):
        sync_source(register(), batch_size=0)


# --- Interrupted --------------------------------------------------------------


class Failing:
    """A getter that stops the run at one row, as a lost connection would."""

    def __init__(self, key: int) -> None:
        self.key: int | None = key

    def __call__(self, row: Article) -> str:
        if row.pk == self.key:
            raise KeyboardInterrupt
        return row.headline


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("restart", [False, True])
def test_a_run_goes_on_from_the_last_batch_or_begins_anew(restart: bool) -> None:
    rows = articles(7)
    title = Failing(rows[4].pk)
    source = register(title=title)
    with pytest.raises(KeyboardInterrupt):
        sync_source(source, batch_size=2)
    checkpoint = SourceCheckpoint.objects.get()
    assert (checkpoint.last_key, checkpoint.rows) == (str(rows[3].pk), 4)
    assert len(contents()) == 4

    title.key = None
    Article.objects.filter(pk=rows[0].pk).update(body="Edited.")
    steps: list[int] = []
    report = sync_source(source, batch_size=2, restart=restart, progress=steps.append)
    assert sum(steps) == 7
    if restart:
        assert (*counts(report), report.rows) == (3, 1, 3, 0, 0, 7)
        assert (report.resumed_after, report.rows_before) == (None, 0)
    else:
        assert (*counts(report), report.rows) == (3, 0, 0, 0, 0, 3)
        assert (report.resumed_after, report.rows_before) == (str(rows[3].pk), 4)
        assert contents()[str(rows[0].pk)] == "Body 0."
        assert counts(sync_source(source)) == (0, 1, 6, 0, 0)
    assert contents()[str(rows[0].pk)] == "Edited."
    assert SourceCheckpoint.objects.count() == 0


@pytest.mark.usefixtures("library")
def test_a_checkpoint_of_another_type_of_key_is_told() -> None:
    articles(1)
    source = register()
    SourceCheckpoint.objects.create(source_table="library_article", last_key="abc", rows=2)
    with pytest.raises(InvalidArgument, match="after key 'abc', which is no key") as refused:
        sync_source(source)
    assert "--restart" in refused.value.hint
    assert contents() == {}
    assert counts(sync_source(source, restart=True)) == (1, 0, 0, 0, 0)


@pytest.fixture
def start(database: dict[str, Any]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``manage.py`` of the library's project, not waited for."""
    started: list[subprocess.Popen[str]] = []
    environment = {
        "PATH": os.environ["PATH"],
        "ENV_FILE": os.devnull,
        "DEBUG": "true",
        "DATABASE_URL": "postgres://{user}@:{port}/{dbname}?host={host}".format(**database),
        "CARTRITA_EMBEDDED_DIR": str(settings.EMBEDDED_DIR),
        **LIBRARY,
    }

    def _start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "manage.py", *arguments],
            cwd=settings.BASE_DIR,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield _start
    for process in started:
        process.kill()
        process.communicate()


def wait_for_waiter(observer: psycopg.Connection, holder: int) -> int:
    """The backend that waits for a lock of backend `holder`, as soon as there is one."""
    deadline = time.monotonic() + 60
    while not (
        waiting := observer.execute(
            "SELECT pid FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))", [holder]
        ).fetchall()
    ):
        assert time.monotonic() < deadline, "nobody came to wait for the lock"
    ((pid,),) = waiting
    return int(pid)


@pytest.mark.usefixtures("library")
def test_a_killed_process_is_gone_on_with(
    start: Callable[..., subprocess.Popen[str]],
    manage: Manage,
    connect: Connect,
    pg: psycopg.Connection,
) -> None:
    rows = articles(8)
    keys = [str(row.pk) for row in rows]
    command = ("sync_documents", "--source", "library_article", "--batch-size", "2")
    assert manage(*command, **LIBRARY).returncode == 0
    Article.objects.update(body="Edited.")

    holder = connect(autocommit=False)
    holder.execute("SELECT FROM search_documents WHERE source_id = %s FOR UPDATE", [keys[5]])
    process = start(*command)
    wait_for_waiter(pg, holder.info.backend_pid)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    holder.rollback()

    assert SourceCheckpoint.objects.get().last_key == keys[3]
    edited = [key for key, text in contents().items() if text == "Edited."]
    assert sorted(edited) == sorted(keys[:4])

    Article.objects.filter(pk=rows[0].pk).update(body="Edited again.")
    done = manage(*command, **LIBRARY)
    assert done.returncode == 0, done.stderr
    assert f"went on after key '{keys[3]}', 4 rows done before." in done.stdout
    assert done.stdout.splitlines()[3].split() == ["library_article", "4", "0", "4", "0", "0", "0"]
    assert set(contents().values()) == {"Edited."}
    assert SourceCheckpoint.objects.count() == 0

    done = manage(*command, **LIBRARY)
    assert done.stdout.splitlines()[2].split() == ["library_article", "8", "0", "1", "7", "0", "0"]
    assert contents()[keys[0]] == "Edited again."


@pytest.mark.usefixtures("library")
def test_runs_at_the_same_time_share_the_rows(connect: Connect, pg: psycopg.Connection) -> None:
    rows = articles(9)
    source = register()
    sync_source(source)
    Article.objects.update(body="Edited.")
    holder = connect(autocommit=False)
    holder.execute(
        "SELECT FROM search_documents WHERE source_id = %s FOR UPDATE", [str(rows[2].pk)]
    )

    def run() -> SyncReport:
        try:
            return sync_source(source, batch_size=2)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run)
        waiting = wait_for_waiter(pg, holder.info.backend_pid)
        second = pool.submit(run)
        wait_for_waiter(pg, waiting)
        holder.rollback()
        reports = [first.result(), second.result()]

    assert sum(report.rows for report in reports) == 9
    assert sum(report.updated for report in reports) == 9
    assert set(contents().values()) == {"Edited."}
    assert SourceCheckpoint.objects.count() == 0


# --- Registration -------------------------------------------------------------


class Abstract(models.Model):
    class Meta:
        abstract = True
        app_label = "library"


class Pair(models.Model):
    pk = models.CompositePrimaryKey("left", "right")
    left = models.IntegerField()
    right = models.IntegerField()

    class Meta:
        app_label = "library"

    def __str__(self) -> str:
        return f"{self.left}/{self.right}"


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Article, {"content": "bodi"}, "'bodi' cannot be read from library.Article: .*no field"),
        (Article, {"title": ""}, "'' cannot be read"),
        (Article, {"owner": "author__nobody"}, "'author__nobody' .* Author has no field"),
        (Article, {"owner": "headline__id"}, "headline is no relation"),
        (Letter, {"content": "text", "tags": "readers"}, "readers has many values"),
        (Author, {"content": "name", "title": "article"}, "'article' cannot be read"),
        (Article, {"tags": ["labels"]}, r"tags of source 'library_article' is \['labels'\]"),
        (Article, {"source_table": ""}, "1 to 128 characters, not 0"),
        (Article, {"source_table": "x" * 129}, "1 to 128 characters, not 129"),
        (Abstract, {}, "Abstract cannot be a source: it is abstract"),
        (Pair, {"content": "left"}, "a primary key of several columns"),
    ],
)
def test_what_cannot_be_a_source_is_refused_when_it_is_registered(
    model: type[models.Model], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message) as refused:
        register_source(model, **{"content": "body"} | options)
    assert refused.value.hint
    assert sources.registered_sources() == {}


def test_a_table_is_registered_once() -> None:
    source = register()
    assert register() == source
    with pytest.raises(InvalidArgument, match="'library_article' is registered already"):
        register(title=None)
    register(title=None, source_table="untitled")
    assert list(sources.registered_sources()) == ["library_article", "untitled"]


def test_the_primary_key_and_a_key_column_are_fields_too() -> None:
    article = Article(pk=7, headline="h", author_id=3)
    source = register(title="pk", owner="author_id", content="author")
    (document,) = source.documents(article)
    assert (document.title, document.user_id, document.content) == ("7", 3, "3")


def test_a_wrong_registration_is_one_line_when_the_project_starts(
    tmp_path: Path, manage: Manage
) -> None:
    app = tmp_path / "broken"
    app.mkdir()
    (app / "__init__.py").touch()
    (app / "settings.py").write_text(
        "from cartrita.settings import *\nINSTALLED_APPS = [*INSTALLED_APPS, 'broken']\n"
    )
    (app / "search_sources.py").write_text(
        "from django.contrib.auth.models import User\n"
        "from cartrita_search.sources import register_source\n"
        "register_source(User, content='nickname')\n"
    )
    done = manage("check", DJANGO_SETTINGS_MODULE="broken.settings", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "'nickname' cannot be read from auth.User: User has no field named 'nickname'" in line


def test_sources_are_found_by_name() -> None:
    with pytest.raises(InvalidArgument, match="No source is registered") as refused:
        find_sources()
    assert "search_sources.py" in refused.value.hint

    first, second = register(), register(source_table="another")
    assert find_sources() == [second, first]
    assert find_sources(["library_article", "library_article"]) == [first]
    with pytest.raises(InvalidArgument, match="No source 'articles' is registered") as refused:
        find_sources(["another", "articles"])
    assert "another, library_article" in refused.value.hint


@pytest.mark.django_db
def test_a_source_without_its_table_is_told_by_the_check_and_refused() -> None:
    register()

    def found() -> list[Any]:
        messages = run_checks(tags=[Tags.database], databases=["default"])
        return [message for message in messages if message.id == "cartrita_search.E004"]

    (message,) = found()
    assert message.is_serious()
    assert "'library_article'" in message.msg
    with pytest.raises(InvalidArgument, match='no table "library_article"'):
        sync_source(find_sources()[0])
    assert [m for m in run_checks() if m.id == "cartrita_search.E004"] == []

    with connection.schema_editor() as editor:
        editor.create_model(Author)
        editor.create_model(Article)
    assert found() == []


# --- manage.py sync_documents -------------------------------------------------


@pytest.mark.usefixtures("library")
def test_the_command_from_end_to_end(manage: Manage) -> None:
    ada = User.objects.create_user("ada")
    articles(3, author=Author.objects.create(name="Ada", person=ada), labels=["a"])
    Page.objects.create(slug="index", text="Welcome.")

    done = manage("sync_documents", "--dry-run", **LIBRARY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "A dry run: nothing was written."
    assert contents() == {}

    done = manage("sync_documents", **LIBRARY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "source           rows  inserted  updated  unchanged  deleted  refused",
        "---------------  ----  --------  -------  ---------  -------  -------",
        "library_article     3         3        0          0        0        0",
        "pages               1         1        0          0        0        0",
        "New and changed texts await their vectors.",
    ]
    # Each line goes on with the rate and the time left.
    assert [line.split(", ")[0] for line in done.stderr.splitlines()] == [
        "library_article: 3 of 3 (100 %)",
        "pages: 1 of 1 (100 %)",
    ]
    assert set(SearchDocument.objects.values_list("user_id", flat=True)) == {ada.pk, None}

    Article.objects.all().delete()
    done = manage("sync_documents", "--source", "library_article", "--no-prune", **LIBRARY)
    assert done.stdout.splitlines()[-1].split() == ["library_article", *"000000"]
    done = manage("sync_documents", "--source", "library_article", "--json", **LIBRARY)
    (outcome,) = json.loads(done.stdout)
    assert (outcome["source_table"], outcome["rows"], outcome["deleted"]) == (
        "library_article",
        0,
        3,
    )
    assert contents("pages") == {"index": "Welcome."}


@pytest.mark.usefixtures("library")
def test_refused_rows_are_named_and_are_exit_status_3(manage: Manage) -> None:
    Page.objects.create(slug="x\n" + "x" * 500, text="too long a key")
    Page.objects.create(slug="y", text="well")
    done = manage("sync_documents", "--source", "pages", **LIBRARY)
    assert done.returncode == 3
    assert done.stdout.splitlines()[2].split() == ["pages", "2", "1", "0", "0", "0", "1"]
    assert f"pages/x {'x' * 500}#0: " in done.stderr
    assert done.stderr.splitlines()[-1] == "CommandError: 1 refused; the rest is in step."


def test_errors_are_one_line_and_exit_status_1(manage: Manage, transactional_db: None) -> None:
    for arguments, variables, message in (
        ((), {}, "No source is registered"),
        (("--source", "nowhere"), LIBRARY, "No source 'nowhere' is registered"),
        (("--source", "pages"), LIBRARY, 'has no table "library_page"'),
    ):
        done = manage("sync_documents", *arguments, **variables)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert message in done.stderr


@pytest.mark.usefixtures("library")
def test_an_interrupted_command_says_how_to_go_on() -> None:
    rows = articles(3)
    register(title=Failing(rows[2].pk))
    with pytest.raises(CommandError, match=r"Interrupted.*the next run goes on") as stopped:
        call_command("sync_documents", "--batch-size", "1")
    assert stopped.value.returncode == 130
    assert len(contents()) == 2
