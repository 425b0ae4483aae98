"""The preview: saved and edited weights side by side, as the person whom they are for."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import connection
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from pytest_django.asserts import assertContains, assertNotContains

from cartrita_search import metrics
from cartrita_search.admin import preview
from cartrita_search.models import (
    RetrievalConfig,
    SearchDocument,
    SearchJudgement,
    SearchPerformanceMetric,
)
from cartrita_search.retrieval import keyword_search
from tests.redis_server import UseRedis
from tests.test_admin import allow, url
from tests.topics import BY_MEANING, BY_WORD, QUESTION, SCRIPT, embedded_by_topics, load_topics

pytestmark = pytest.mark.django_db

EDITED = {"question": QUESTION, "vector_weight": "0.2", "similarity_threshold": "0"}


@pytest.fixture(autouse=True)
def topics() -> Iterator[None]:
    cache.clear()
    with embedded_by_topics():
        yield


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


@pytest.fixture
def config(ada: User) -> RetrievalConfig:
    load_topics(ada)
    return RetrievalConfig.objects.create(user=ada)


@pytest.fixture
def staff(client: Client) -> User:
    """Somebody who is logged in and may do nothing yet."""
    user = User.objects.create_user("grace", is_staff=True)
    client.force_login(user)
    return user


def address(config: RetrievalConfig) -> str:
    return reverse("admin:cartrita_search_retrievalconfig_preview", args=[config.pk])


def ask(client: Client, config: RetrievalConfig, **changes: str) -> Any:
    headers = {"X-Requested-With": "fetch"}
    return client.post(address(config), EDITED | changes, headers=headers)


def keys(rows: list[preview.Row]) -> list[str]:
    return [row.hit.source_id for row in rows]


def test_saved_and_edited_weights_are_shown_side_by_side(
    config: RetrievalConfig, admin_client: Client
) -> None:
    shown = ask(admin_client, config)
    compared = shown.context["comparison"]
    assert keys(compared.saved)[0] == BY_MEANING[0]
    assert keys(compared.edited)[0] != BY_MEANING[0]
    assert keys(compared.edited)[-1] == BY_MEANING[0]
    assert [row.movement for row in compared.edited][-1] == "down 2"
    assert {row.movement for row in compared.saved} == {""}
    assertContains(shown, "by vector")
    assertContains(shown, "<mark>car</mark>")
    for row in compared.edited:
        share = (row.vector_part + row.keyword_part) / 100
        assert share == pytest.approx(row.hit.hybrid_score, abs=0.002)


def test_what_moves_in_and_out_is_told(
    config: RetrievalConfig, admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "SHOWN", 1)
    compared = ask(admin_client, config).context["comparison"]
    assert [row.movement for row in compared.saved] == ["gone"]
    assert [row.movement for row in compared.edited] == ["new"]


def test_a_script_is_shown_and_not_run(config: RetrievalConfig, admin_client: Client) -> None:
    shown = ask(admin_client, config)
    assertNotContains(shown, "<script>document")
    assertContains(shown, "&lt;script&gt;document.title")
    page = admin_client.post(address(config), EDITED | {"question": SCRIPT})
    assertNotContains(page, "<script>document")


def test_without_a_script_it_is_a_page(config: RetrievalConfig, admin_client: Client) -> None:
    page = admin_client.post(address(config), EDITED)
    assertContains(page, "Edited: 0.2 meaning")
    assertContains(page, '?vector_weight=0.2"')
    assertContains(page, "csrfmiddlewaretoken")
    assertContains(admin_client.get(url("change", config)), 'id="cs-preview"')
    empty = admin_client.get(address(config))
    assertContains(empty, 'value="0.7"')


@pytest.mark.parametrize(
    "wrong",
    [
        {"vector_weight": "2"},
        {"vector_weight": "nan"},
        {"vector_weight": ""},
        {"question": ""},
        {"question": "x" * 1001},
        {"similarity_threshold": "-1"},
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused(
    wrong: dict[str, str], config: RetrievalConfig, admin_client: Client
) -> None:
    shown = ask(admin_client, config, **wrong)
    assert shown.status_code == 400
    assertContains(shown, "Enter a question, and numbers from 0 to 1.", status_code=400)


def test_it_sees_what_the_person_sees_and_nothing_of_others(
    ada: User, config: RetrievalConfig, admin_client: Client
) -> None:
    other = RetrievalConfig.objects.create(user=User.objects.create_user("eve"))
    site = RetrievalConfig.objects.create()
    assert BY_MEANING[0] in keys(ask(admin_client, config).context["comparison"].edited)
    for elsewhere in (other, site):
        found = keys(ask(admin_client, elsewhere).context["comparison"].edited)
        assert BY_WORD[0] in found
        assert BY_MEANING[0] not in found


def test_no_search_is_recorded_as_the_person_s(
    config: RetrievalConfig, admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[Any] = []
    monkeypatch.setattr(metrics._recorder, "add", lambda row, _: recorded.append(row))
    with override_settings(CARTRITA_SEARCH=settings.CARTRITA_SEARCH | {"RECORD_SEARCHES": True}):
        assert ask(admin_client, config).context["comparison"].edited
        assert recorded == []
        keyword_search(QUESTION)
        assert len(recorded) == 1


def test_without_an_embedder_it_finds_by_words_and_says_why(
    config: RetrievalConfig, admin_client: Client
) -> None:
    with embedded_by_topics(None):
        shown = ask(admin_client, config)
    assertContains(shown, "By words alone, which no weight changes: No embedder is configured")
    compared = shown.context["comparison"]
    assert keys(compared.saved) == keys(compared.edited)
    assert BY_WORD[0] in keys(compared.edited)
    assert BY_MEANING[0] not in keys(compared.edited)


def test_a_model_without_vectors_leaves_words(ada: User, admin_client: Client) -> None:
    config = RetrievalConfig.objects.create(user=ada)
    SearchDocument.objects.create(source_table="notes", source_id="1", title="A car")
    shown = ask(admin_client, config)
    assertContains(shown, "By words alone")
    assert keys(shown.context["comparison"].edited) == ["1"]


def test_too_many_are_refused_for_a_minute(
    config: RetrievalConfig, admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "PREVIEWS_PER_MINUTE", 2)
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    assert [ask(admin_client, config).status_code for _ in range(3)] == [200, 200, 429]
    assertContains(ask(admin_client, config), "Wait a minute", status_code=429)
    monkeypatch.setattr(time, "time", lambda: 1_000_060.0)
    assert ask(admin_client, config).status_code == 200


def test_recent_questions_are_the_person_s_own(
    ada: User, config: RetrievalConfig, staff: User, client: Client
) -> None:
    for text, user in (("old one", ada), ("hers", ada), ("old one", ada), ("not hers", staff)):
        SearchPerformanceMetric.objects.create(
            user=user, search_type="hybrid", query_text=text, result_count=1, execution_time_ms=1
        )
    allow(staff, "view_retrievalconfig")
    assertNotContains(client.get(url("change", config)), "old one")
    allow(staff, "view_searchperformancemetric")
    shown = client.get(url("change", config)).text
    assert re.findall(r'<option value="([^"]*)"></option>', shown) == ["old one", "hers"]
    assertContains(client.get(address(config)), "hers")
    # A slider that is dragged does not read them each time.
    with CaptureQueriesContext(connection) as captured:
        assert ask(client, config).status_code == 200
    assert not [query for query in captured if "search_performance_metrics" in query["sql"]]


def test_it_takes_the_permission_to_view_the_configuration(
    config: RetrievalConfig, client: Client
) -> None:
    assert ask(client, config).status_code == 302
    staff = User.objects.create_user("grace", is_staff=True)
    client.force_login(staff)
    assert ask(client, config).status_code == 403
    allow(staff, "view_searchdocument", "add_searchjudgement", "view_user")
    assert ask(client, config).status_code == 403
    allow(staff, "view_retrievalconfig")
    assert ask(client, config).status_code == 200
    config.refresh_from_db()
    assert config.vector_weight == 0.7


def test_a_guessed_id_is_nothing(config: RetrievalConfig, admin_client: Client) -> None:
    for guess in ("4711", "0", "x", "1/2"):
        page = reverse("admin:cartrita_search_retrievalconfig_preview", args=[guess])
        assert admin_client.post(page, EDITED).status_code == 302, guess


def test_it_is_not_for_other_sites(config: RetrievalConfig, admin_user: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    assert client.post(address(config), EDITED).status_code == 403


# --- Judging what is found ------------------------------------------------------


def test_results_are_marked_as_relevant_or_not(
    ada: User, config: RetrievalConfig, staff: User, client: Client
) -> None:
    allow(staff, "view_retrievalconfig")
    document = SearchDocument.objects.get(source_id=BY_MEANING[0])
    assertNotContains(ask(client, config), 'name="judge"')
    assert ask(client, config, judge=f"{document.pk}:1").status_code == 403
    assert not SearchJudgement.objects.exists()

    allow(staff, "add_searchjudgement")
    shown = ask(client, config, judge=f"{document.pk}:1")
    assertContains(shown, f'value="{document.pk}:1" aria-pressed="true"')
    judgement = SearchJudgement.objects.get()
    assert (judgement.user, judgement.query_text, judgement.grade) == (ada, QUESTION, 1)
    assert (judgement.source_id, judgement.judged_by) == (BY_MEANING[0], "grace")

    shown = ask(client, config, judge=f"{document.pk}:0")
    assertContains(shown, f'value="{document.pk}:0" aria-pressed="true"')
    assert SearchJudgement.objects.get().grade == 0


def test_nobody_judges_what_the_person_cannot_find(
    ada: User, config: RetrievalConfig, admin_client: Client
) -> None:
    hers = SearchDocument.objects.get(source_id=BY_MEANING[0])
    others = RetrievalConfig.objects.create(user=User.objects.create_user("eve"))
    for elsewhere in (others, RetrievalConfig.objects.create()):
        ask(admin_client, elsewhere, judge=f"{hers.pk}:1")
    for nonsense in ("x", "4711:1", f"{hers.pk}", f"{hers.pk}:x"):
        assert ask(admin_client, config, judge=nonsense).status_code == 200
    assert not SearchJudgement.objects.exists()


def test_without_redis_there_is_a_preview_and_no_limit(
    config: RetrievalConfig,
    admin_client: Client,
    use_redis: UseRedis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preview, "PREVIEWS_PER_MINUTE", 0)
    assert ask(admin_client, config).status_code == 429
    use_redis("redis://127.0.0.1:1/0")
    shown = ask(admin_client, config)
    assert shown.status_code == 200
    assert shown.context["comparison"].edited
    for name in ("dashboard", "health"):
        page = admin_client.get(reverse(f"admin:cartrita_search_{name}"))
        assert page.status_code == 200
