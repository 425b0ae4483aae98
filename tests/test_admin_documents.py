"""The list of documents: hybrid search in its box, and what is similar to one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client, override_settings
from django.urls import reverse
from pytest_django.asserts import assertContains, assertNotContains

from cartrita_search import metrics
from cartrita_search.models import Embedding, SearchDocument
from tests.test_admin import allow, url
from tests.topics import BY_MEANING, BY_WORD, SCRIPTED, embedded_by_topics, load_topics

pytestmark = pytest.mark.django_db

LIST = url("changelist", SearchDocument)


@pytest.fixture(autouse=True)
def topics() -> Iterator[None]:
    with embedded_by_topics():
        load_topics(User.objects.create_user("ada"))
        yield


def listed(client: Client, **query: str) -> list[str]:
    found = client.get(LIST, query).context["cl"]
    return [document.source_id for document in found.result_list]


def document(key: tuple[str, str, str]) -> SearchDocument:
    return SearchDocument.objects.get(source_id=key[0])


def similar(row: SearchDocument) -> str:
    return reverse("admin:cartrita_search_searchdocument_similar", args=[row.pk])


def test_without_a_search_documents_are_in_the_order_of_their_sources(
    admin_client: Client,
) -> None:
    SearchDocument.objects.create(source_table="books", source_id="1")
    assert listed(admin_client) == ["1", BY_MEANING[0], BY_WORD[0], SCRIPTED[0]]
    assert listed(admin_client, q=" ") == listed(admin_client)
    assert listed(admin_client, source_table="books") == ["1"]
    filters = admin_client.get(LIST).context["cl"].filter_specs
    assert filters[0].lookup_choices == [("books", "books"), ("notes", "notes")]


def test_the_box_searches_by_meaning_and_words_best_first(admin_client: Client) -> None:
    assert listed(admin_client, q="car")[0] == BY_MEANING[0]
    assert listed(admin_client, q="toy")[0] == BY_WORD[0]
    SearchDocument.objects.create(source_table="books", source_id="1", title="A car")
    assert listed(admin_client, q="car", source_table="books") == ["1"]
    assert "1" not in listed(admin_client, q="car", source_table="notes")


def test_a_document_is_found_by_its_source(admin_client: Client) -> None:
    SearchDocument.objects.create(source_table="books", source_id="a/1", title="Nothing")
    assert listed(admin_client, q="books/a/1")[0] == "a/1"
    assert listed(admin_client, q=f"notes/{BY_WORD[0]}")[0] == BY_WORD[0]


def test_without_an_embedder_the_box_searches_by_words_and_says_so(admin_client: Client) -> None:
    with embedded_by_topics(None):
        page = admin_client.get(LIST, {"q": "car"})
    assertContains(page, "By words alone: No embedder is configured")
    found = [row.source_id for row in page.context["cl"].result_list]
    assert BY_MEANING[0] not in found
    assert BY_WORD[0] in found


@pytest.mark.parametrize("text", ["\x00", '"', "-", "x" * 5000, "%", "' OR 1=1"])
def test_any_text_can_be_searched_for(text: str, admin_client: Client) -> None:
    assert admin_client.get(LIST, {"q": text}).status_code in {200, 302}


def test_the_search_of_staff_is_not_recorded(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[Any] = []
    monkeypatch.setattr(metrics._recorder, "add", lambda row, _: recorded.append(row))
    with override_settings(CARTRITA_SEARCH=settings.CARTRITA_SEARCH | {"RECORD_SEARCHES": True}):
        assert listed(admin_client, q="car")
        assert admin_client.get(similar(document(BY_WORD))).context["hits"]
    assert recorded == []


def test_similar_documents_are_the_nearest_without_the_document_itself(
    admin_client: Client,
) -> None:
    page = admin_client.get(similar(document(BY_WORD)))
    assert [hit.source_id for hit in page.context["hits"]] == [SCRIPTED[0], BY_MEANING[0]]
    assertNotContains(page, "<script>document")
    assertContains(page, "&lt;script&gt;document")
    assertContains(admin_client.get(url("change", document(BY_WORD))), "Similar to this")

    SearchDocument.objects.filter(source_id=BY_WORD[0]).update(title="Changed")
    assertContains(admin_client.get(similar(document(BY_WORD))), "vector of an older text")
    Embedding.objects.filter(document=document(BY_WORD)).delete()
    assertContains(admin_client.get(similar(document(BY_WORD))), "sync_embeddings")


def test_similar_documents_take_the_permission_to_view_documents(client: Client) -> None:
    page = similar(document(BY_WORD))
    assert client.get(page).status_code == 302
    staff = User.objects.create_user("grace", is_staff=True)
    client.force_login(staff)
    allow(staff, "view_embedding", "view_retrievalconfig")
    assert client.get(page).status_code == 403
    allow(staff, "view_searchdocument")
    assert client.get(page).status_code == 200
    for guess in ("4711", "00000000-0000-0000-0000-000000000000"):
        missing = reverse("admin:cartrita_search_searchdocument_similar", args=[guess])
        assert client.get(missing).status_code == 302
