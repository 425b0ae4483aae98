"""Judgements: files of them, and the curve over weights that they make."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.cache import cache
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client, override_settings
from django.urls import reverse
from pytest_django.asserts import assertContains, assertNotContains

from cartrita_search import judging, metrics
from cartrita_search.admin import weight_curve
from cartrita_search.models import RetrievalConfig, SearchJudgement
from cartrita_search.retrieval import keyword_search
from tests.redis_server import UseRedis
from tests.test_admin import allow, url
from tests.topics import BY_MEANING, BY_WORD, SCRIPT, embedded_by_topics, load_topics

pytestmark = pytest.mark.django_db

UPLOAD = url("add", SearchJudgement)


@pytest.fixture(autouse=True)
def topics() -> Iterator[None]:
    cache.clear()
    with embedded_by_topics():
        yield


@pytest.fixture
def ada() -> User:
    user = User.objects.create_user("ada")
    load_topics(user)
    return user


def upload(client: Client, content: str, name: str = "judged.jsonl") -> Any:
    return client.post(UPLOAD, {"file": SimpleUploadedFile(name, content.encode())})


def line(query: str, key: tuple[str, str, str], grade: int = 1, **more: Any) -> str:
    record = {"query": query, "source_table": "notes", "source_id": key[0], "grade": grade}
    return json.dumps(record | more) + "\n"


def curve_page(config: RetrievalConfig) -> str:
    return reverse("admin:cartrita_search_retrievalconfig_curve", args=[config.pk])


# --- Files --------------------------------------------------------------------


def test_a_file_of_judgements_is_stored(ada: User, admin_client: Client) -> None:
    content = line("car", BY_MEANING, 2, user="ada") + line("car", BY_WORD, 0, user="ada")
    content += line("lawn", BY_WORD, chunk_index=0) + line("lawn", ("unknown", "", ""))
    shown = admin_client.post(
        UPLOAD, {"file": SimpleUploadedFile("x.jsonl", content.encode())}, follow=True
    )
    assertContains(shown, "Stored: 3 judgements.")
    assertContains(shown, "of unknown documents: 1.")
    assert judging.judged("car", ada.pk) == {
        ("notes", BY_MEANING[0], None): 2,
        ("notes", BY_WORD[0], None): 0,
    }
    assert judging.judged("lawn", None) == {("notes", BY_WORD[0], 0): 1}
    assert {row.judged_by for row in SearchJudgement.objects.all()} == {"admin"}

    upload(admin_client, line("car", BY_MEANING, 1, user="ada"))
    assert judging.judged("car", ada.pk)["notes", BY_MEANING[0], None] == 1
    assert SearchJudgement.objects.count() == 3


@pytest.mark.parametrize(
    ("content", "name", "complaint"),
    [
        ("{", "x.jsonl", "judgements.jsonl: line 1 is not JSON"),
        (line("car", BY_WORD, user=SCRIPT), "x.jsonl", "there is no user"),
        (line("car", BY_WORD), "x.csv", "a file .jsonl or .tsv is expected"),
        (line("x" * 1001, BY_WORD), "x.jsonl", "1001 characters; 1 to 1000"),
        (line("car", ("unknown", "", "")), "x.jsonl", "no query has a relevant document"),
        ("", "x.jsonl", "The submitted file is empty"),
        ("[" * 100_000, "x.jsonl", "judgements.jsonl: line 1 is not JSON"),
        (line("car", BY_WORD), "x." + "a" * 250, "a file .jsonl or .tsv is expected"),
    ],
    ids=["JSON", "user", "suffix", "length", "unknown", "empty", "nested", "name"],
)
def test_a_file_that_cannot_be_read_is_refused_with_its_line(
    content: str, name: str, complaint: str, ada: User, admin_client: Client
) -> None:
    shown = upload(admin_client, content, name)
    assertContains(shown, complaint)
    assertNotContains(shown, SCRIPT)
    assertNotContains(shown, "/tmp")
    assert not SearchJudgement.objects.exists()


def test_a_file_that_is_too_large_is_not_read(ada: User, admin_client: Client) -> None:
    assertContains(upload(admin_client, " " * 5_000_001), "larger than 5 MB")


def test_uploading_takes_the_permission_to_add(ada: User, client: Client) -> None:
    staff = User.objects.create_user("grace", is_staff=True)
    client.force_login(staff)
    allow(staff, "view_searchjudgement", "change_searchjudgement", "delete_searchjudgement")
    assert upload(client, line("car", BY_WORD)).status_code == 403
    assert not SearchJudgement.objects.exists()
    allow(staff, "add_searchjudgement")
    assert upload(client, line("car", BY_WORD)).status_code == 302
    assert SearchJudgement.objects.count() == 1


# --- The curve ----------------------------------------------------------------

#: What is right by meaning alone; the word is in others.
RIGHT = ("car", "a car", "the car", "car car", "one car", "motor car")


def test_the_curve_marks_the_present_weights_and_suggests_better_ones(
    ada: User, admin_client: Client
) -> None:
    config = RetrievalConfig.objects.create(user=ada, vector_weight=0.1, keyword_weight=0.9)
    for question in RIGHT:
        key = ("notes", BY_MEANING[0], 0)
        judging.judge(question, key, 1, user_id=ada.pk, by="grace")
    judging.judge("lawn", ("notes", BY_WORD[0], 0), 1, user_id=None, by="grace")  # not hers
    page = curve_page(config)
    assertContains(admin_client.get(url("change", config)), page)
    assertContains(admin_client.get(page), "6 questions judged for this person")

    shown = admin_client.post(page, follow=True)
    curve = shown.context["curve"]
    assert (curve.queries, curve.present) == (6, 0.1)
    assert curve.best > 0.1
    means = {point[0]: point[1] for point in curve.points}
    assert means[curve.best] == max(means.values()) > means[0.1]
    assert all(low <= high for _, _, low, high in curve.points)
    assertContains(shown, "above the present 0.1/0.9")
    assertContains(shown, '<figure aria-hidden="true"><svg', 1)
    assert (f"?vector_weight={curve.best}" in shown.text) is curve.significant

    # Kept until something that it rests on changes.
    assert admin_client.get(page).context["curve"] == curve
    judging.judge("car", ("notes", BY_WORD[0], 0), 0, user_id=ada.pk, by="grace")
    assert admin_client.get(page).context["curve"] is None
    SearchJudgement.objects.filter(query_text="motor car").delete()
    drawn = admin_client.post(page, follow=True).context["curve"]
    assert admin_client.get(page).context["curve"] == drawn
    # Neither the latest one nor the newest id.
    SearchJudgement.objects.get(query_text="a car").delete()
    assert admin_client.get(page).context["curve"] is None


def test_a_curve_is_drawn_without_a_cache(
    ada: User, admin_client: Client, use_redis: UseRedis
) -> None:
    use_redis("redis://127.0.0.1:1/0")
    for question in RIGHT[:2]:
        judging.judge(question, ("notes", BY_MEANING[0], 0), 1, user_id=ada.pk, by="grace")
    shown = admin_client.post(curve_page(RetrievalConfig.objects.create(user=ada)), follow=True)
    assert shown.context["curve"].queries == 2


def test_no_search_of_a_curve_is_recorded(
    ada: User, admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for question in RIGHT[:2]:
        judging.judge(question, ("notes", BY_MEANING[0], 0), 1, user_id=None, by="grace")
    recorded: list[Any] = []
    monkeypatch.setattr(metrics._recorder, "add", lambda row, _: recorded.append(row))
    with override_settings(CARTRITA_SEARCH=settings.CARTRITA_SEARCH | {"RECORD_SEARCHES": True}):
        page = curve_page(RetrievalConfig.objects.create())
        assert admin_client.post(page, follow=True).context["curve"]
        assert recorded == []
        keyword_search("car")
        assert len(recorded) == 1


def test_the_site_s_curve_is_by_everybody_s_judgements(ada: User, admin_client: Client) -> None:
    config = RetrievalConfig.objects.create()
    judging.judge("car", ("notes", BY_MEANING[0], 0), 1, user_id=ada.pk, by="grace")
    judging.judge("lawn", ("notes", BY_WORD[0], 0), 1, user_id=None, by="grace")
    assert admin_client.post(curve_page(config), follow=True).context["curve"].queries == 2


def test_what_makes_no_curve_is_said(ada: User, admin_client: Client) -> None:
    config = RetrievalConfig.objects.create(user=ada)
    judging.judge("car", ("notes", BY_MEANING[0], 0), 1, user_id=ada.pk, by="grace")
    judging.judge("lawn", ("notes", BY_MEANING[0], 0), 0, user_id=ada.pk, by="grace")
    page = curve_page(config)
    assertContains(admin_client.post(page, follow=True), "A curve needs two questions")
    judging.judge("lawn", ("notes", BY_MEANING[0], 0), 1, user_id=ada.pk, by="grace")
    with embedded_by_topics(None):
        assertContains(admin_client.post(page, follow=True), "No embedder is configured")
    cache.add(f"cartrita_search:curve-busy:{config.pk}", 1)
    assertContains(admin_client.post(page, follow=True), "It is being drawn")


def test_the_curve_takes_both_permissions(ada: User, client: Client) -> None:
    page = curve_page(RetrievalConfig.objects.create(user=ada))
    assert client.get(page).status_code == 302
    staff = User.objects.create_user("grace", is_staff=True)
    client.force_login(staff)
    allow(staff, "view_retrievalconfig")
    assert client.get(page).status_code == 403
    allow(staff, "view_searchjudgement")
    assert client.get(page).status_code == 200
    missing = reverse("admin:cartrita_search_retrievalconfig_curve", args=["4711"])
    assert client.get(missing).status_code == 302
    assert weight_curve.MOST_QUESTIONS > 50
