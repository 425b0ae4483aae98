"""The dashboard: its figures, its panels by permission, and what it must not show."""

from __future__ import annotations

import re
import statistics
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django.asserts import assertContains, assertNotContains

from cartrita_search.admin import dashboard
from cartrita_search.models import (
    EmbeddingModel,
    OperatorAction,
    RedisSession,
    SearchDocument,
    SearchPerformanceMetric,
)
from cartrita_search.ops.actions import record_action
from cartrita_search.ops.vector_indexes import statuses
from tests.test_admin import SCRIPT, allow

pytestmark = pytest.mark.django_db

PAGE, HEALTH = (reverse(f"admin:cartrita_search_{name}") for name in ("dashboard", "health"))

#: A heading of each panel, by its permission.
PANELS = {
    "searchperformancemetric": "Questions without a hit",
    "embeddingmodel": "Vector indexes",
    "redissession": "Live in Redis",
    "operatoraction": "Last backup",
}


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    cache.clear()


def searched(hours: float, **fields: Any) -> None:
    row = {"search_type": "hybrid", "result_count": 3, "execution_time_ms": 10.0} | fields
    made = SearchPerformanceMetric.objects.create(**row)
    SearchPerformanceMetric.objects.filter(pk=made.pk).update(
        created_at=timezone.now() - timedelta(hours=hours)
    )


def totals(client: Client, key: str) -> dict[str, dashboard.Totals]:
    usage = client.get(PAGE, {"range": key}).context["usage"]
    return {each.name: each for each in usage.by_type}


def test_searches_are_counted_by_type_and_time(admin_client: Client) -> None:
    times = [10.0, 20.0, 30.0, 40.0, 100.0]
    for number, milliseconds in enumerate(times):
        searched(1 + number, execution_time_ms=milliseconds, cache_hit=number == 0)
    searched(30, search_type="keyword", result_count=0)
    searched(24 * 10, search_type="keyword")
    searched(24 * 40)

    day = totals(admin_client, "24h")
    assert (day["hybrid"].searches, day["keyword"].searches, day["all"].searches) == (5, 0, 5)
    assert day["hybrid"].p50 == statistics.median(times)
    assert day["hybrid"].p95 == pytest.approx(40 + 0.8 * 60)
    assert day["keyword"].p50 is None
    assert day["hybrid"].cached_share == 20
    week, month = totals(admin_client, "7d"), totals(admin_client, "30d")
    assert (week["keyword"].searches, week["keyword"].zero_hits) == (1, 1)
    assert (month["keyword"].searches, month["all"].searches) == (2, 7)
    assert totals(admin_client, "nonsense") == day


def test_the_charts_have_their_figures_in_a_table(admin_client: Client) -> None:
    searched(0.5)
    searched(0.5, search_type="vector", execution_time_ms=20.0)
    searched(23.5)
    page = admin_client.get(PAGE)
    usage = page.context["usage"]
    assert len(usage.parts) == 24
    assert [part.searches for part in usage.parts] == [1, *[0] * 22, 2]
    assert (usage.parts[-1].p50, usage.parts[0].p95) == (15, 10)
    # Vector, keyword, hybrid, all: as the chart of the volume is drawn.
    assert [counts for _, counts in usage.figures if counts[-1]] == [[0, 0, 1, 1], [1, 0, 1, 2]]
    assertContains(page, '<th scope="col">keyword</th>', 1)
    assertContains(page, 'aria-hidden="true"><svg', 2)
    assertNotContains(page, "http://www.w3.org/1999/xhtml")
    assert "<script" not in usage.volume + usage.latency


def test_of_many_searches_a_part_tells_the_percentiles(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO search_performance_metrics (search_type, result_count,"
            " execution_time_ms) SELECT 'hybrid', 1, i FROM generate_series(1, 1000) AS i"
        )
    exact = totals(admin_client, "24h")["hybrid"]
    monkeypatch.setattr(dashboard, "SAMPLE", 100)
    sampled = totals(admin_client, "24h")["hybrid"]
    assert sampled.searches == exact.searches == 1000
    assert exact.p50 == 500.5
    assert sampled.p50 == pytest.approx(exact.p50, rel=0.05)
    assert sampled.p50 != exact.p50


def test_questions_without_a_hit_show_their_text_only_where_it_is_kept(
    admin_client: Client,
) -> None:
    for _ in range(2):
        searched(1, result_count=0, query_hash="b" * 64)
    searched(1, result_count=0, query_hash="a" * 64, query_text=f"where is {SCRIPT}")
    searched(1, result_count=1, query_hash="c" * 64, query_text="found")
    for text in ("without a hash", "another without"):
        searched(1, result_count=0, query_text=text)
    page = admin_client.get(PAGE)
    assert [times for _, _, times, _ in page.context["questions"]] == [2, 1, 1, 1]
    assertContains(page, "without a hash")
    assertContains(page, "another without")
    assertContains(page, "text not kept, bbbbbbbb")
    assertContains(page, "where is &lt;script&gt;")
    assertNotContains(page, SCRIPT)
    assertNotContains(page, "found")


def test_sessions_and_operations_are_told(admin_client: Client) -> None:
    now = timezone.now()
    for number, (minutes, revoked) in enumerate([(5, None), (5, now), (-5, None)]):
        RedisSession.objects.create(
            session_key_hash=f"{number:064x}",
            ttl_seconds=60,
            expires_at=now + timedelta(minutes=minutes),
            revoked_at=revoked,
        )
    record_action("backup", "first.dump")
    record_action("backup", f"second {SCRIPT}")
    record_action("backup", "third.dump", done=False)
    page = admin_client.get(PAGE)
    live = RedisSession.objects.filter(revoked_at=None, expires_at__gt=now).count()
    assertContains(page, f"{live} of kind session")
    assertContains(page, "second &lt;script&gt;")
    assertNotContains(page, "third.dump")
    assertContains(page, "never, as far as is recorded", 2)


def test_what_was_terminated_is_a_list_of_its_own(admin_client: Client) -> None:
    for action in ("terminate", "cancel", "backup"):
        OperatorAction.objects.create(action=action, subject=f"subject of {action}")
    link = "?action__in=terminate,cancel"
    assertContains(admin_client.get(PAGE), link)
    page = admin_client.get(reverse("admin:cartrita_search_operatoraction_changelist") + link)
    assertContains(page, "subject of terminate")
    assertContains(page, "subject of cancel")
    assertNotContains(page, "subject of backup")


def test_each_index_has_a_badge_and_its_recall(admin_client: Client) -> None:
    fields = {"dimensions": 3, "measured_recall": 0.875}
    EmbeddingModel.objects.create(name=f"provider/{SCRIPT}", is_default=True, **fields)
    page = admin_client.get(PAGE)
    assertContains(page, '<span class="cs-badge cs-good">in order</span>')
    assertContains(page, "0.875 of 0.95")
    assertNotContains(page, SCRIPT)
    models = reverse("admin:cartrita_search_embeddingmodel_changelist")
    assertContains(admin_client.get(models), "in order")
    link = re.search(r'href="([^"]*/embeddingmodel/provider[^"]*)"', page.text)
    assert link
    assert admin_client.get(link[1]).status_code == 200


def test_an_index_that_is_due_is_marked(admin_client: Client) -> None:
    EmbeddingModel.objects.create(name="mini", dimensions=3, is_default=True)
    (status,) = statuses()
    for changes, word in (
        ({"needs": ["recall"]}, "rebuild"),
        ({"is_valid": False}, "invalid"),
        ({"is_valid": True}, "in order"),
    ):
        assert word in dashboard.badge_html(replace(status, **changes))


def test_health_tells_what_the_doctor_found(admin_client: Client) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE schema_migrations SET checksum = 'x' WHERE version LIKE '0005%'")
    page = admin_client.get(HEALTH)
    assertContains(page, "D005")
    assertContains(page, "<code>manage.py verify_migrations</code>")


def test_health_tells_of_stale_embeddings_and_keeps_it(admin_client: Client) -> None:
    model = EmbeddingModel.objects.create(name="mini", dimensions=3, is_default=True)
    document = SearchDocument.objects.create(source_table="notes", source_id="1", title="A")
    document.embeddings.create(embedding_model=model, embedding=[1, 0, 0])
    SearchDocument.objects.update(title="B")
    page = admin_client.get(HEALTH)
    assertContains(page, '<span class="cs-badge cs-warning">1</span>')
    assertContains(page, "<html")
    SearchDocument.objects.all().delete()
    part = admin_client.get(HEALTH, headers={"X-Requested-With": "fetch"})
    assertContains(part, "cs-warning")
    assertNotContains(part, "<html")


def test_panels_take_the_permission_of_what_they_show(client: Client) -> None:
    for page in (PAGE, HEALTH):
        assert client.get(page).headers["Location"].startswith(reverse("admin:login"))
    staff = User.objects.create_user("grace", is_staff=True)
    client.force_login(staff)
    for page in (PAGE, HEALTH):
        assert client.get(page).status_code == 403
    assertNotContains(client.get(reverse("admin:index")), "Search dashboard")
    allow(staff, "view_retrievalconfig")
    assertContains(client.get(PAGE), "None of the panels")
    for index in (reverse("admin:index"), reverse("admin:app_list", args=["cartrita_search"])):
        assertContains(client.get(index), "Search dashboard")
    for name in PANELS:
        staff.user_permissions.clear()
        allow(staff, f"view_{name}")
        shown = client.get(PAGE).text
        assert {panel for panel, heading in PANELS.items() if heading in shown} == {name}
    staff.user_permissions.clear()
    allow(staff, "view_searchperformancemetric")
    assertNotContains(client.get(HEALTH), "<h3>")
    allow(staff, "view_vectorsearchstats")
    health = client.get(HEALTH)
    assertContains(health, "<h3>Embeddings</h3>")
    assertNotContains(health, "Findings")
