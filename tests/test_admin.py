"""The admin: every page opens, holds its permissions, and saves what it should."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from queue import Queue
from typing import Any

import psycopg
import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import quote
from django.contrib.auth.models import Permission, User
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, models, transaction
from django.db.models.expressions import DatabaseDefault
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from cartrita_search import sessions
from cartrita_search.admin.base import CappedPaginator
from cartrita_search.models import (
    CacheInvalidation,
    Embedding,
    EmbeddingModel,
    EmbeddingRefusal,
    KeywordCorpus,
    KeywordStatistic,
    OperatorAction,
    RedisSession,
    RetrievalConfig,
    SchemaMigration,
    SearchDocument,
    SearchGeneration,
    SearchJudgement,
    SearchPerformanceMetric,
    SearchSettings,
    SourceCheckpoint,
    VectorSearchStats,
    owner_name,
)
from tests.conftest import Connect
from tests.postgres import wait_until_blocked

Model = type[models.Model]

pytestmark = pytest.mark.django_db

SCRIPT = "<script>alert(1)</script>"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;"

#: Every model with a page, and whether its rows may be added, changed and deleted there.
PAGES: dict[Model, str] = {
    RetrievalConfig: "add change delete",
    SearchJudgement: "add delete",
    SearchDocument: "add change delete",
    SearchSettings: "change",
    EmbeddingModel: "change",
    Embedding: "",
    EmbeddingRefusal: "",
    VectorSearchStats: "",
    KeywordCorpus: "",
    SearchPerformanceMetric: "",
    CacheInvalidation: "add",
    RedisSession: "",
    SourceCheckpoint: "",
    OperatorAction: "",
    SchemaMigration: "",
}


def url(page: str, row: Model | models.Model) -> str:
    """The address of a page: of a model, or of a row."""
    arguments = [quote(row.pk)] if isinstance(row, models.Model) else []
    return reverse(f"admin:cartrita_search_{row._meta.model_name}_{page}", args=arguments)


def unedited(response: Any) -> dict[str, str]:
    """What a browser would send back from a page that nobody typed in."""
    fields = ((field.html_name, field.value()) for field in response.context["adminform"].form)
    return {
        name: "on" if value is True else str(value)
        for name, value in fields
        if value is not None and value is not False
    }


def hidden(response: Any) -> dict[str, list[str]]:
    """What the page that asks sends on."""
    fields: dict[str, list[str]] = {}
    for name, value in re.findall(
        r'<input type="hidden" name="([^"]*)" value="([^"]*)">', response.text
    ):
        fields.setdefault(name, []).append(value)
    return fields


def errors(response: Any) -> list[str]:
    """The errors that a page shows; none if it was saved."""
    return [] if response.status_code == 302 else list(response.context["errors"])


def allow(user: User, *names: str) -> None:
    """Give permissions, named like ``view_searchdocument``."""
    user.user_permissions.add(*Permission.objects.filter(codename__in=names))


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


def make_rows(user: User, number: int) -> None:
    """A row in each table that a page lists, different for each number."""
    model, _ = EmbeddingModel.objects.get_or_create(
        name=f"mini-{number}", dimensions=8, is_default=number == 0
    )
    document = SearchDocument.objects.create(
        source_table=f"books-{number}",
        source_id="1",
        user=user,
        title=f"{number} {SCRIPT}",
        content=f"The Analytical Engine {SCRIPT}",
        metadata={"note": SCRIPT},
    )
    Embedding.objects.create(
        document=document, embedding_model=model, embedding=[0.25, -1, 0, 0, 0, 0, 0, 0.125]
    )
    EmbeddingRefusal.objects.create(
        document=document,
        embedding_model=model,
        content_hash=document.content_hash,
        error_code="SE022",
        message=SCRIPT,
        worker="host:1",
    )
    RetrievalConfig.objects.create(user=user, config_name=SCRIPT)
    SearchJudgement.objects.create(
        user=user, query_text=SCRIPT, source_table="books", source_id="1", grade=1
    )
    SearchPerformanceMetric.objects.create(
        user=user, search_type="hybrid", query_text=SCRIPT, result_count=1, execution_time_ms=2.5
    )
    CacheInvalidation.objects.create(
        cache_namespace="search", invalidation_reason=SCRIPT, invalidated_by="ada"
    )
    RedisSession.objects.create(
        user=user,
        session_key_hash=f"{number:064x}",
        ttl_seconds=60,
        expires_at=timezone.now() + timedelta(minutes=1),
    )
    OperatorAction.objects.create(action="terminate", subject="4711", reason=SCRIPT)
    SourceCheckpoint.objects.create(source_table=f"books-{number}", last_key=SCRIPT)
    KeywordCorpus.objects.create(language=f"language-{number}", documents=1, average_length=3)
    KeywordStatistic.objects.create(
        language=f"language-{number}", lexeme=SCRIPT, document_frequency=1
    )


@pytest.fixture
def rows(ada: User) -> dict[Model, models.Model]:
    """One row of each model, by model."""
    make_rows(ada, 0)
    return {model: model._default_manager.all()[0] for model in PAGES}


# --- Every page ---------------------------------------------------------------


def test_every_model_has_a_page_but_the_one_that_django_refuses() -> None:
    ours = set(apps.get_app_config("cartrita_search").get_models())
    assert {model for model in ours if admin.site.is_registered(model)} == set(PAGES)
    assert ours - set(PAGES) == {KeywordStatistic, SearchGeneration}
    assert KeywordStatistic._meta.is_composite_pk


@pytest.mark.parametrize("model", PAGES, ids=lambda model: model.__name__)
def test_every_page_opens_and_escapes_what_people_wrote(
    model: Model, rows: dict[Model, models.Model], admin_client: Client
) -> None:
    row = rows[model]
    pages = [url("changelist", model), url("change", row), url("history", row)]
    pages += [url("add", model)] if "add" in PAGES[model] else []
    pages += [url("delete", row)] if "delete" in PAGES[model] else []
    for page in pages:
        response = admin_client.get(page, follow=True)
        assert response.status_code == 200, page
        assert SCRIPT not in response.text, page
        assert DatabaseDefault.__name__ not in response.text, page


@pytest.mark.parametrize(
    ("page", "model"),
    [
        ("changelist", SearchDocument),
        ("change", SearchDocument),
        ("delete", SearchDocument),
        ("change", Embedding),
        ("changelist", RetrievalConfig),
        ("changelist", SearchPerformanceMetric),
        ("changelist", CacheInvalidation),
        ("change", KeywordCorpus),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_what_people_wrote_is_shown_as_they_wrote_it(
    page: str, model: Model, rows: dict[Model, models.Model], admin_client: Client
) -> None:
    target = model if page == "changelist" else rows[model]
    assert ESCAPED in admin_client.get(url(page, target)).text


@pytest.mark.parametrize("model", PAGES, ids=lambda model: model.__name__)
def test_a_page_offers_what_it_may_and_refuses_the_rest_even_to_a_superuser(
    model: Model, rows: dict[Model, models.Model], admin_client: Client
) -> None:
    row = rows[model]
    offered = admin_client.get(url("change", row), follow=True).context
    assert offered["has_add_permission"] is ("add" in PAGES[model])
    assert offered["has_change_permission"] is ("change" in PAGES[model])
    assert offered["has_delete_permission"] is ("delete" in PAGES[model])
    if "add" not in PAGES[model]:
        assert admin_client.post(url("add", model), {}).status_code == 403
    if "change" not in PAGES[model]:
        assert admin_client.post(url("change", row), {}).status_code == 403
    if "delete" not in PAGES[model]:
        assert admin_client.post(url("delete", row), {"post": "yes"}).status_code == 403
        assert model._default_manager.filter(pk=row.pk).exists()


@pytest.mark.parametrize(
    "model",
    [model for model in PAGES if "change" in PAGES[model]],
    ids=lambda model: model.__name__,
)
def test_a_page_saved_as_it_was_opened_changes_nothing(
    model: Model, rows: dict[Model, models.Model], admin_client: Client
) -> None:
    row = rows[model]
    page = url("change", row)
    response = admin_client.post(page, unedited(admin_client.get(page)))
    assert errors(response) == []
    assert response.status_code == 302
    fields = [field.attname for field in model._meta.concrete_fields if field.name != "updated_at"]
    stored = model._default_manager.get(pk=row.pk)
    assert [getattr(stored, name) for name in fields] == [getattr(row, name) for name in fields]


@pytest.mark.parametrize(
    "model", [model for model in PAGES if model is not SearchSettings], ids=lambda m: m.__name__
)
def test_a_list_takes_the_same_queries_for_one_row_and_for_many(
    model: Model,
    rows: dict[Model, models.Model],
    admin_client: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The list of revoked sessions, otherwise read once a second, is read with each page.
    monkeypatch.setattr(sessions, "REVOCATION_SECONDS", 0.0)

    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert admin_client.get(url("changelist", model)).status_code == 200
        return len(captured)

    queries()  # the first page also looks the content types up
    with_one = queries()
    for number in range(1, 6):
        make_rows(User.objects.create_user(f"person-{number}"), number)
    assert queries() == with_one


# --- Permissions --------------------------------------------------------------


@pytest.mark.parametrize("model", PAGES, ids=lambda model: model.__name__)
def test_pages_are_for_staff_with_the_permission(
    model: Model, rows: dict[Model, models.Model], client: Client
) -> None:
    pages = [url("changelist", model), url("add", model)]
    pages += [url(page, rows[model]) for page in ("change", "delete", "history")]
    for page in pages:
        response = client.get(page)
        assert response.status_code == 302, page
        assert response.headers["Location"].startswith(reverse("admin:login")), page

    staff = User.objects.create_user("grace", is_staff=True)
    client.force_login(staff)
    for page in pages:
        assert client.get(page).status_code == 403, page


@pytest.mark.parametrize("model", PAGES, ids=lambda model: model.__name__)
def test_who_may_only_view_cannot_save(
    model: Model, rows: dict[Model, models.Model], client: Client
) -> None:
    staff = User.objects.create_user("grace", is_staff=True)
    allow(staff, f"view_{model._meta.model_name}")
    client.force_login(staff)
    row = rows[model]
    assert client.get(url("changelist", model), follow=True).status_code == 200
    response = client.get(url("change", row))
    assert response.status_code == 200
    assert not response.context["has_change_permission"]
    assert client.post(url("change", row), {"title": "x", "max_results": 5}).status_code == 403
    assert client.post(url("delete", row), {"post": "yes"}).status_code == 403
    assert client.post(url("add", model), {}).status_code == 403


def test_who_may_change_configs_may_change_nothing_else(
    rows: dict[Model, models.Model], client: Client
) -> None:
    staff = User.objects.create_user("grace", is_staff=True)
    allow(staff, "change_retrievalconfig")
    client.force_login(staff)
    page = url("change", rows[RetrievalConfig])
    data = unedited(client.get(page)) | {"max_results": "25"}
    assert client.post(page, data).status_code == 302
    assert RetrievalConfig.objects.get().max_results == 25
    assert client.get(url("change", rows[SearchDocument])).status_code == 403


# --- Retrieval configs --------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"vector_weight": 0.5, "keyword_weight": 0.4}, "sum to 1"),
        ({"vector_weight": -0.1, "keyword_weight": 1.1}, "greater than or equal to 0"),
        ({"vector_weight": 1.1, "keyword_weight": -0.1}, "less than or equal to 1"),
        ({"similarity_threshold": -0.01}, "greater than or equal to 0"),
        ({"similarity_threshold": 1.01}, "less than or equal to 1"),
        ({"max_results": 0}, "greater than or equal to 1"),
        ({"max_results": 1001}, "less than or equal to 1000"),
        ({"is_active": True}, "make that one inactive first"),
    ],
    ids=str,
)
@pytest.mark.parametrize("whose", ["a person", "the site"])
def test_form_model_and_database_refuse_alike(
    change: dict[str, Any], complaint: str, whose: str, ada: User, admin_client: Client
) -> None:
    user = ada if whose == "a person" else None
    RetrievalConfig.objects.create(user=user)
    config = RetrievalConfig.objects.create(user=user, is_active=False)

    page = url("change", config)
    response = admin_client.post(page, unedited(admin_client.get(page)) | change)
    assert response.status_code == 200
    assert complaint in str(response.context["errors"])

    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(ValidationError):
        config.full_clean()

    with pytest.raises(IntegrityError), transaction.atomic():
        RetrievalConfig.objects.filter(pk=config.pk).update(**change)


def test_the_form_refuses_what_is_no_number(admin_client: Client) -> None:
    page = url("add", RetrievalConfig)
    data = unedited(admin_client.get(page))
    for word in ("nan", "inf", "", "half"):
        response = admin_client.post(page, data | {"vector_weight": word})
        assert len(errors(response)) == 1, word
    assert not RetrievalConfig.objects.exists()


def test_adding_and_changing_a_config_is_written_to_its_history(
    ada: User, admin_client: Client
) -> None:
    page = url("add", RetrievalConfig)
    data = unedited(admin_client.get(page)) | {"user": str(ada.pk)}
    assert errors(admin_client.post(page, data)) == []
    config = RetrievalConfig.objects.get(user=ada)
    added = config.updated_at

    page = url("change", config)
    data = unedited(admin_client.get(page)) | {"vector_weight": "0.25", "keyword_weight": "0.75"}
    assert errors(admin_client.post(page, data)) == []
    config.refresh_from_db()
    assert (config.vector_weight, config.keyword_weight) == (0.25, 0.75)
    assert config.updated_at > added

    entry = LogEntry.objects.get(action_flag=CHANGE)
    assert entry.get_edited_object() == config
    assert entry.get_change_message() == (
        "Changed vector weight 0.7 → 0.25 and keyword weight 0.3 → 0.75."
    )
    assert entry.get_change_message() in admin_client.get(url("history", config)).text


def test_a_person_is_found_by_typing_and_configs_by_their_person(
    ada: User, admin_client: Client
) -> None:
    for user in (ada, User.objects.create_user("abel"), None):
        RetrievalConfig.objects.create(user=user)
    asked = {"app_label": "cartrita_search", "model_name": "retrievalconfig", "field_name": "user"}
    found = admin_client.get(reverse("admin:autocomplete"), asked | {"term": "ad"}).json()
    assert {"id": str(ada.pk), "text": "ada"} in found["results"]

    def listed(query: str) -> list[str | None]:
        configs = admin_client.get(url("changelist", RetrievalConfig) + query).context["cl"]
        return [owner_name(config) for config in configs.result_list]

    assert listed("") == [None, "abel", "ada"]
    assert listed("?q=abel") == ["abel"]
    assert listed("?user__isempty=1") == [None]
    assert listed("?is_active__exact=0") == []
    assert "site default" in admin_client.get(url("changelist", RetrievalConfig)).text


@pytest.mark.parametrize("model", [RetrievalConfig, SearchDocument])
def test_a_row_of_somebody_unknown_to_django_stays_theirs(
    model: Any, rows: dict[Model, models.Model], admin_client: Client
) -> None:
    row: Any = rows[model]
    model.objects.filter(pk=row.pk).update(user_id=4711)
    assert "user 4711" in admin_client.get(url("changelist", model)).text
    page = url("change", row)
    data = unedited(admin_client.get(page))
    assert "user" not in data
    assert errors(admin_client.post(page, data | {"user": ""})) == []
    row.refresh_from_db()
    assert row.user_id == 4711


# --- Settings and models ------------------------------------------------------


def test_the_settings_are_one_page(admin_client: Client) -> None:
    row = SearchSettings.objects.get()
    response = admin_client.get(url("changelist", SearchSettings))
    assert response.headers["Location"] == url("change", row)

    page = url("change", row)
    data = unedited(admin_client.get(page))
    assert data["default_language"] == "english"
    response = admin_client.post(page, data | {"default_language": "german"}, follow=True)
    assert response.redirect_chain[-1][0] == page
    assert SearchSettings.objects.get().default_language == "german"

    response = admin_client.post(page, data | {"default_language": "klingon"})
    assert "klingon" in str(errors(response))
    response = admin_client.post(page, data | {"hnsw_ef_construction": "31"})
    assert "at least twice m" in str(errors(response))


def test_another_model_becomes_the_default(admin_client: Client) -> None:
    old = EmbeddingModel.objects.create(name="old", dimensions=3, is_default=True)
    new = EmbeddingModel.objects.create(name="provider/new", dimensions=3)

    # Where it is the default there is no box to untick: there always is one.
    assert "is_default" not in unedited(admin_client.get(url("change", old)))
    page = url("change", new)
    data = unedited(admin_client.get(page)) | {"is_default": "on", "target_recall": "0.9"}
    assert errors(admin_client.post(page, data)) == []
    assert EmbeddingModel.objects.get(is_default=True) == new
    assert EmbeddingModel.objects.get(pk=new.pk).target_recall == 0.9


@pytest.mark.django_db(transaction=True)
def test_of_two_who_choose_a_default_at_once_the_later_one_wins(
    clean_tables: None, connect: Connect, pg: psycopg.Connection, admin_client: Client
) -> None:
    for name in ("old", "one", "other"):
        EmbeddingModel.objects.create(name=name, dimensions=3, is_default=name == "old")
    page = url("change", EmbeddingModel(pk="other"))
    data = unedited(admin_client.get(page)) | {"is_default": "on"}
    pids: Queue[int] = Queue()

    def choose_other() -> list[str]:
        with closing(connection), connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            pids.put(cursor.fetchone()[0])
            return errors(admin_client.post(page, data))

    choosing_one = connect(autocommit=False)
    choosing_one.execute("UPDATE embedding_models SET is_default = false WHERE name = 'old'")
    choosing_one.execute("UPDATE embedding_models SET is_default = true WHERE name = 'one'")
    with ThreadPoolExecutor(1) as pool:
        chosen = pool.submit(choose_other)
        wait_until_blocked(pg, pids.get(timeout=30))
        choosing_one.commit()
        assert chosen.result(timeout=30) == []
    assert EmbeddingModel.objects.get(is_default=True).name == "other"


def test_what_a_rebuild_records_is_not_for_hands(admin_client: Client) -> None:
    model = EmbeddingModel.objects.create(name="mini", dimensions=3)
    page = url("change", model)
    shown = admin_client.get(page)
    assert set(unedited(shown)) == {"target_recall", "preferred_storage"}
    assert "exact scan, for 0 vectors. An exact scan of up to 1000" in shown.text

    asked = {"target_recall": "0.9", "preferred_storage": "bit"}
    edited = {"dimensions": "5", "ef_search": "7", "index_method": "hnsw"}
    assert errors(admin_client.post(page, asked | edited)) == []
    model.refresh_from_db()
    assert (model.target_recall, model.dimensions) == (0.9, 3)
    assert (model.ef_search, model.index_method) == (None, "exact")
    assert model.preferred_storage == "bit"
    assert len(errors(admin_client.post(page, asked | {"target_recall": "0"}))) == 1


def test_the_page_of_a_model_says_what_the_catalog_and_the_plan_say(
    admin_client: Client,
) -> None:
    model = EmbeddingModel.objects.create(name="mini", dimensions=3)
    page = url("change", model)
    assert "No index; 0 vectors. No reason to rebuild it." in admin_client.get(page).text
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT vector_index_sql(p, vector_index_name('mini')) "
            "FROM vector_index_plan('mini', 'hnsw') AS p"
        )
        cursor.execute(cursor.fetchone()[0])
    text = admin_client.get(page).text
    assert "hnsw on halfvec (m=16,ef_construction=64), valid" in text
    assert "0 vectors, +0 since it was built." in text
    assert "The plan is an exact scan, and there is an index (hnsw)." in text


def test_a_storage_that_cannot_index_the_dimension_is_refused(admin_client: Client) -> None:
    model = EmbeddingModel.objects.create(name="large", dimensions=3072)
    page = url("change", model)
    shown = admin_client.get(page)
    asked = unedited(shown) | {"preferred_storage": "vector"}
    advice = "vector indexes up to 2000 dimensions; large has 3072. Choose halfvec, bit or auto."
    assert advice in str(errors(admin_client.post(page, asked)))
    for storage in ("halfvec", "bit", "auto"):
        assert errors(admin_client.post(page, asked | {"preferred_storage": storage})) == []
        model.refresh_from_db()
        assert model.preferred_storage == storage
    with pytest.raises(IntegrityError), transaction.atomic():
        EmbeddingModel.objects.update(preferred_storage="vector")


# --- Documents and embeddings -------------------------------------------------


def test_a_document_added_here_awaits_its_embedding(admin_client: Client) -> None:
    page = url("add", SearchDocument)
    shown = admin_client.get(page)
    assert "when it has been embedded" in shown.text
    data = unedited(shown) | {
        "source_table": "books",
        "source_id": "1",
        "title": "Title",
        "content": "Text",
        "tags": "a,b",
        "metadata": "",
    }
    assert errors(admin_client.post(page, data)) == []
    document = SearchDocument.objects.get()
    assert len(document.content_hash) == 64
    assert document.search_vector == "'text':2 'titl':1A"
    assert (document.tags, document.metadata) == (["a", "b"], {})
    assert "none yet" in admin_client.get(url("change", document)).text

    # The same chunk of the same row again.
    assert "already exists" in str(errors(admin_client.post(page, data)))


def test_a_changed_document_keeps_its_key_and_reaches_its_vectors(
    rows: dict[Model, models.Model], admin_client: Client
) -> None:
    document: Any = rows[SearchDocument]
    page = url("change", document)
    shown = admin_client.get(page)
    assert "(up to date)" in shown.text
    assert "source_id" not in unedited(shown)

    data = unedited(shown) | {"metadata": '{"shelf": 3}', "source_id": "2"}
    assert errors(admin_client.post(page, data)) == []
    assert Embedding.objects.get().metadata == {"shelf": 3}
    assert "(up to date)" in admin_client.get(page).text

    assert errors(admin_client.post(page, data | {"content": "Another text"})) == []
    stored = SearchDocument.objects.get()
    assert stored.source_id == "1"
    assert stored.content_hash != document.content_hash
    assert SearchDocument.objects.filter(search_vector="another").get() == stored
    assert "(of an older text)" in admin_client.get(page).text


@pytest.mark.parametrize("metadata", ['["list"]', '"text"', "1", "false", "{"])
def test_metadata_is_a_json_object(
    metadata: str, rows: dict[Model, models.Model], admin_client: Client
) -> None:
    page = url("change", rows[SearchDocument])
    data = unedited(admin_client.get(page)) | {"metadata": metadata}
    assert len(errors(admin_client.post(page, data))) == 1


def test_a_language_that_is_no_more_is_not_silently_replaced(
    rows: dict[Model, models.Model], admin_client: Client
) -> None:
    document: Any = rows[SearchDocument]
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEXT SEARCH CONFIGURATION gone (COPY = simple)")
        SearchDocument.objects.filter(pk=document.pk).update(language="gone")
        cursor.execute("DROP TEXT SEARCH CONFIGURATION gone")
    shown = admin_client.get(url("change", document)).text
    language = re.search(r'<select name="language".*?</select>', shown, re.DOTALL)
    assert language
    assert "selected" not in language[0]
    assert '<option value="">' in language[0]


def test_a_large_table_is_not_counted_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        SearchDocument.objects.create(source_table="books", source_id=str(number))
    documents = SearchDocument.objects.order_by("source_id")
    assert CappedPaginator(documents, 2).count == 4
    monkeypatch.setattr(CappedPaginator, "MAX_ROWS", 3)
    paginator = CappedPaginator(documents, 2)
    assert (paginator.count, paginator.num_pages) == (3, 2)


def test_deleting_a_document_tells_of_its_vectors_and_takes_them(
    rows: dict[Model, models.Model], admin_client: Client
) -> None:
    page = url("delete", rows[SearchDocument])
    assert "Embeddings: 1" in admin_client.get(page).text
    assert admin_client.post(page, {"post": "yes"}).status_code == 302
    assert not SearchDocument.objects.exists()
    assert not Embedding.objects.exists()


def test_the_list_of_documents_tells_how_fresh_their_vectors_are(
    rows: dict[Model, models.Model], admin_client: Client
) -> None:
    def freshness() -> list[str]:
        shown = admin_client.get(url("changelist", SearchDocument)).text
        return re.findall(r'<td class="field-freshness">(.*?)</td>', shown)

    SearchDocument.objects.create(source_table="maps", source_id="1")
    assert freshness() == ["up to date", "none yet"]
    SearchDocument.objects.filter(pk=rows[SearchDocument].pk).update(title="Changed")
    assert freshness() == ["of an older text: mini-0", "none yet"]


def test_a_refused_document_is_embedded_again_by_forgetting_that(
    rows: dict[Model, models.Model], client: Client
) -> None:
    staff = User.objects.create_user("grace", is_staff=True)
    client.force_login(staff)
    page = url("changelist", EmbeddingRefusal)
    data = {"action": "embed_again", "_selected_action": [str(rows[EmbeddingRefusal].pk)]}

    allow(staff, "view_embeddingrefusal")
    assert "embed_again" not in client.get(page).text
    client.post(page, data)
    assert EmbeddingRefusal.objects.exists()

    allow(staff, "delete_embeddingrefusal")
    assert "embed_again" in client.get(page).text
    assert "delete_selected" not in client.get(page).text
    shown = client.post(page, data, follow=True)
    assert "will try 1 again" in shown.text
    assert not EmbeddingRefusal.objects.exists()
    assert SearchDocument.objects.exists()


def test_a_refusal_holds_until_the_text_changes(
    rows: dict[Model, models.Model], admin_client: Client
) -> None:
    page = url("changelist", EmbeddingRefusal)
    assert "icon-yes" in admin_client.get(page).text
    SearchDocument.objects.update(title="Changed")
    assert "icon-no" in admin_client.get(page).text


def test_a_vector_is_shown_shortened(
    rows: dict[Model, models.Model], admin_client: Client
) -> None:
    shown = admin_client.get(url("change", rows[Embedding])).text
    assert "8 dimensions: [0.25, -1, 0, 0, 0, 0, …]" in shown
    assert "0.125" not in shown


def test_a_corpus_shows_its_most_frequent_lexemes(admin_client: Client) -> None:
    corpus = KeywordCorpus.objects.create(language="english", documents=9, average_length=3)
    for lexeme, frequency in (("engin", 2), ("wing", 9), ("<b>", 2)):
        KeywordStatistic.objects.create(
            language="english", lexeme=lexeme, document_frequency=frequency
        )
    KeywordStatistic.objects.create(language="german", lexeme="flug", document_frequency=5)
    shown = admin_client.get(url("change", corpus)).text
    assert "wing (9), &lt;b&gt; (2), engin (2)" in shown
    assert "flug" not in shown


# --- People -------------------------------------------------------------------


def test_a_person_can_be_deleted_with_all_that_is_theirs(
    ada: User, rows: dict[Model, models.Model], admin_client: Client
) -> None:
    owner = ada.pk
    page = reverse("admin:auth_user_delete", args=[owner])
    assert admin_client.get(page).status_code == 200
    assert admin_client.post(page, {"post": "yes"}).status_code == 302
    for model in (
        RetrievalConfig,
        SearchDocument,
        Embedding,
        SearchPerformanceMetric,
        RedisSession,
        SearchJudgement,
    ):
        assert not model._default_manager.filter(user_id=owner).exists(), model
