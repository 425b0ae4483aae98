"""Every view beside Django's own, as anonymous, plain staff, with each permission, superuser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.contrib.auth.models import Permission, User
from django.core.cache import cache
from django.test import Client
from django.urls import reverse

from cartrita_search.models import RetrievalConfig, SearchDocument
from tests.topics import BY_WORD, QUESTION, embedded_by_topics, load_topics

pytestmark = pytest.mark.django_db

#: By view: how it is asked, and the permissions that open it. Of several all are needed.
VIEWS = {
    "retrievalconfig_preview": ("POST", {"view_retrievalconfig"}),
    "retrievalconfig_curve": ("GET", {"view_retrievalconfig", "view_searchjudgement"}),
    "searchdocument_similar": ("GET", {"view_searchdocument"}),
    "searchjudgement_add": ("GET", {"add_searchjudgement"}),
}
#: Any permission of the package opens these; `test_admin_dashboard` looks at the panels.
FOR_ANYBODY_HERE = ("dashboard", "health")
#: Whoever may change may see: so has Django's admin it.
IMPLIED_BY = {
    "change_retrievalconfig": "view_retrievalconfig",
    "change_searchdocument": "view_searchdocument",
}


@pytest.fixture(autouse=True)
def topics() -> Iterator[None]:
    cache.clear()
    with embedded_by_topics():
        load_topics()
        RetrievalConfig.objects.create()
        yield


def ask(client: Client, view: str) -> int:
    """The status of its answer; 302 leads to the login."""
    arguments: list[object] = []
    if view.startswith("retrievalconfig"):
        arguments = [RetrievalConfig.objects.get().pk]
    elif view == "searchdocument_similar":
        arguments = [SearchDocument.objects.get(source_id=BY_WORD[0]).pk]
    page = reverse(f"admin:cartrita_search_{view}", args=arguments)
    if VIEWS.get(view, ("GET",))[0] == "POST":
        data = {"question": QUESTION, "vector_weight": "0.5", "similarity_threshold": "0"}
        return client.post(page, data).status_code
    return client.get(page).status_code


@pytest.mark.parametrize("view", [*VIEWS, *FOR_ANYBODY_HERE])
def test_a_view_is_for_staff_with_its_permission(
    view: str, client: Client, admin_client: Client
) -> None:
    assert ask(client, view) == 302
    client.force_login(User.objects.create_user("user"))
    assert ask(client, view) == 302
    staff = User.objects.create_user("grace", is_staff=True)
    client.force_login(staff)
    assert ask(client, view) == 403
    assert ask(admin_client, view) == 200

    needed = VIEWS[view][1] if view in VIEWS else set()
    ours = Permission.objects.filter(content_type__app_label="cartrita_search")
    for permission in ours:
        staff.user_permissions.set([permission])
        name = permission.codename
        enough = needed <= {name, IMPLIED_BY.get(name)}
        assert ask(client, view) == (200 if enough else 403), name
    if needed:
        staff.user_permissions.set(ours.filter(codename__in=needed))
        assert ask(client, view) == 200


@pytest.mark.parametrize(
    "view", ["retrievalconfig_preview", "retrievalconfig_curve", "searchjudgement_add"]
)
def test_what_is_posted_from_elsewhere_is_refused(view: str, admin_user: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    arguments = [RetrievalConfig.objects.get().pk] if view.startswith("retrieval") else []
    page = reverse(f"admin:cartrita_search_{view}", args=arguments)
    assert client.post(page, {"question": QUESTION}).status_code == 403


def test_the_choice_of_people_takes_the_permission_to_view_them(client: Client) -> None:
    page = reverse("admin:autocomplete")
    asked = {"app_label": "cartrita_search", "model_name": "retrievalconfig", "field_name": "user"}
    assert client.get(page, asked).status_code == 302
    staff = User.objects.create_user("grace", is_staff=True)
    client.force_login(staff)
    staff.user_permissions.set(Permission.objects.filter(codename="change_retrievalconfig"))
    assert client.get(page, asked).status_code == 403
    staff.user_permissions.set(Permission.objects.filter(codename="view_user"))
    assert client.get(page, asked).status_code == 200
