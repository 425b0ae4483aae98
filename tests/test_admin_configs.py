"""The admin of search weights: list, form, presets, bulk actions, history, the person's page."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from queue import Queue
from typing import Any

import psycopg
import pytest
from django.contrib.admin import AdminSite
from django.contrib.admin.models import LogEntry
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client, RequestFactory
from django.urls import reverse
from pytest_django.asserts import assertContains, assertNotContains

from cartrita_search.admin.users import RetrievalConfigInline, extend
from cartrita_search.models import RetrievalConfig, SearchPerformanceMetric
from tests.conftest import Connect
from tests.postgres import wait_until_blocked
from tests.test_admin import SCRIPT, allow, errors, hidden, unedited, url

pytestmark = pytest.mark.django_db

LIST = url("changelist", RetrievalConfig)


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


@pytest.fixture
def staff() -> User:
    return User.objects.create_user("grace", is_staff=True)


def column(client: Client, name: str) -> list[str]:
    """The cells of a column of the list, without tags."""
    cells = re.findall(rf'<td class="field-{name}[^"]*">(.*?)</td>', client.get(LIST).text)
    return [re.sub(r"<[^>]+>", "", cell).strip() for cell in cells]


def act(client: Client, action: str, *configs: RetrievalConfig, **data: str) -> Any:
    selected = {"_selected_action": [str(config.pk) for config in configs]}
    return client.post(LIST, {"action": action} | selected | data)


def confirmed(client: Client, action: str, *configs: RetrievalConfig, **data: str) -> str:
    """Do it and say yes; what the list says then."""
    response = act(client, action, *configs, confirmed="yes", **data)
    assert response.status_code == 302
    return client.get(LIST).text


def search_of(user: User | None, results: int) -> None:
    SearchPerformanceMetric.objects.create(
        user=user, search_type="hybrid", result_count=results, execution_time_ms=1
    )


def history(config: RetrievalConfig) -> list[str]:
    entries = LogEntry.objects.filter(
        content_type__model="retrievalconfig", object_id=str(config.pk)
    ).order_by("pk")
    return [entry.get_change_message() for entry in entries]


# --- The list -----------------------------------------------------------------


def test_the_list_tells_how_much_each_configuration_is_searched_by(
    ada: User, staff: User, admin_client: Client
) -> None:
    RetrievalConfig.objects.create()
    RetrievalConfig.objects.create(user=ada)
    RetrievalConfig.objects.create(user=ada, is_active=False)
    RetrievalConfig.objects.create(user=staff, is_active=False)
    for results in (3, 0, 0, 1):
        search_of(ada, results)
    for user in (staff, None):  # whose searches the site's default answers
        search_of(user, 1)
    search_of(ada, 0)
    with connection.cursor() as cursor:  # eight days old: not of the week
        cursor.execute(
            "UPDATE search_performance_metrics SET created_at = now() - interval '8 days'"
            " WHERE id = (SELECT max(id) FROM search_performance_metrics)"
        )
    assert column(admin_client, "searches") == ["2", "4", "-", "-"]
    assert column(admin_client, "zero_hits") == ["0.0%", "50.0%", "-", "-"]


def test_the_list_shows_the_weights_as_a_bar_and_in_figures(admin_client: Client) -> None:
    RetrievalConfig.objects.create(vector_weight=0.25, keyword_weight=0.75)
    assert column(admin_client, "weights") == ["0.25 / 0.75"]
    assert '<rect class="cs-vector" width="20.0"' in admin_client.get(LIST).text


def test_the_list_names_who_changed_a_configuration_last(ada: User, admin_client: Client) -> None:
    config = RetrievalConfig.objects.create(user=ada)
    assert "by" not in column(admin_client, "changed")[0]
    page = url("change", config)
    admin_client.post(page, unedited(admin_client.get(page)) | {"max_results": "5"})
    assert column(admin_client, "changed")[0].endswith(" by admin")
    config.refresh_from_db()
    config.save()  # by another way than the admin
    assert "by" not in column(admin_client, "changed")[0]


# --- The form -----------------------------------------------------------------


def test_a_preset_fills_the_weights_in_and_saves_nothing(ada: User, admin_client: Client) -> None:
    RetrievalConfig.objects.create(vector_weight=0.6, keyword_weight=0.4)
    config = RetrievalConfig.objects.create(user=ada)
    page = url("change", config)
    shown = admin_client.get(page).text
    links = re.findall(r'href="(\?vector_weight[^"]*)">([^<]*)<', shown)
    assert [text for _, text in links] == [
        "Balanced 0.5 / 0.5",
        "Semantic 0.8 / 0.2",
        "Keyword 0.2 / 0.8",
        "Site default 0.6 / 0.4",
    ]
    for target in (page, url("add", RetrievalConfig)):
        filled = admin_client.get(target + links[3][0].replace("&amp;", "&"))
        data = unedited(filled)
        assert (data["vector_weight"], data["keyword_weight"]) == ("0.6", "0.4")
    assertContains(admin_client.get(page + "?vector_weight=0.6"), "save them to use them")
    config.refresh_from_db()
    assert config.vector_weight == 0.7


def test_a_proposal_is_over_when_the_page_is_saved(ada: User, admin_client: Client) -> None:
    page = url("change", RetrievalConfig.objects.create(user=ada))
    proposed = admin_client.get(page, {"vector_weight": "0.2"})
    form = re.search(r'<form (?:action="([^"]*)" )?method="post" id="retrieval', proposed.text)
    assert form
    edited = {"vector_weight": "0.4", "keyword_weight": "0.6", "_continue": "yes"}
    sent_to = form[1] or page + "?vector_weight=0.2"
    saved = admin_client.post(sent_to, unedited(proposed) | edited, follow=True)
    assert unedited(saved)["vector_weight"] == "0.4"
    assertNotContains(saved, "save them to use them")


@pytest.mark.parametrize("weight", ["2", "-1", "nan", "half", ""])
def test_a_weight_in_the_address_that_is_none_is_passed_over(
    weight: str, ada: User, admin_client: Client
) -> None:
    page = url("change", RetrievalConfig.objects.create(user=ada))
    assert unedited(admin_client.get(page, {"vector_weight": weight}))["vector_weight"] == "0.7"


def test_who_may_only_view_is_proposed_nothing(ada: User, staff: User, client: Client) -> None:
    allow(staff, "view_retrievalconfig")
    client.force_login(staff)
    page = url("change", RetrievalConfig.objects.create(user=ada))
    shown = client.get(page + "?vector_weight=0.5")
    assertNotContains(shown, "save them to use them")
    assertNotContains(shown, "Balanced")


def test_every_option_is_explained(admin_client: Client) -> None:
    form = admin_client.get(url("add", RetrievalConfig)).context["adminform"].form
    assert not [name for name, field in form.fields.items() if not field.help_text]


def test_the_history_has_old_and_new_values(ada: User, admin_client: Client) -> None:
    config = RetrievalConfig.objects.create(config_name=SCRIPT)
    page = url("change", config)
    data = unedited(admin_client.get(page)) | {"user": str(ada.pk), "max_results": "5"}
    data |= {"rerank_enabled": "on", "similarity_threshold": "0.25"}
    del data["is_active"]
    assert errors(admin_client.post(page, data)) == []
    assert history(config) == [
        "Changed user site default → ada, active yes → no, max results 10 → 5, similarity "
        "threshold 0 → 0.25 and rerank enabled no → yes."
    ]
    data |= {"vector_weight": "0.7000002", "keyword_weight": "0.2999998"}
    admin_client.post(page, data | {"config_name": "plain"})
    assert "vector weight 0.7 → 0.7000002" in history(config)[1]
    shown = admin_client.get(url("history", config)).text
    assert "name &lt;script&gt;" in shown
    assert SCRIPT not in shown


# --- Bulk actions -------------------------------------------------------------


def test_activating_asks_and_makes_the_former_inactive(ada: User, admin_client: Client) -> None:
    former = RetrievalConfig.objects.create(user=ada, config_name="former")
    config = RetrievalConfig.objects.create(user=ada, is_active=False)
    asked = act(admin_client, "activate", config)
    assertContains(asked, "ada, “former”: active yes → no")
    assertContains(asked, "ada, “default”: active no → yes")
    former.refresh_from_db()
    assert former.is_active

    assert "Changed: 2." in confirmed(admin_client, "activate", config)
    config.refresh_from_db()
    former.refresh_from_db()
    assert (config.is_active, former.is_active) == (True, False)
    assert history(config) == ["Changed active no → yes."]
    assert history(former) == ["Changed active yes → no."]
    assert "nothing to change" in confirmed(admin_client, "activate", config)


def test_the_site_s_configuration_is_activated_alike(admin_client: Client) -> None:
    former = RetrievalConfig.objects.create()
    config = RetrievalConfig.objects.create(is_active=False)
    confirmed(admin_client, "activate", config)
    former.refresh_from_db()
    assert not former.is_active


def test_all_that_match_are_selected_however_many_they_are(
    admin_client: Client, settings: Any
) -> None:
    configs = [
        RetrievalConfig.objects.create(user=User.objects.create_user(f"u{n}"), is_active=n == 0)
        for n in range(12)
    ]
    settings.DATA_UPLOAD_MAX_NUMBER_FIELDS = 10
    asked = act(admin_client, "activate", configs[1], select_across="1")
    answered = admin_client.post(LIST, hidden(asked) | {"confirmed": "yes"}, follow=True)
    assertContains(answered, "Changed: 11.")
    assert not RetrievalConfig.objects.filter(is_active=False).exists()

    chosen = configs[1:3]
    RetrievalConfig.objects.update(is_active=False)
    asked = act(admin_client, "activate", *chosen, select_across="0")
    admin_client.post(LIST, hidden(asked) | {"confirmed": "yes"})
    assert set(RetrievalConfig.objects.filter(is_active=True)) == set(chosen)


def test_numbers_are_sent_on_as_they_are_whatever_the_language(
    ada: User, admin_client: Client, settings: Any
) -> None:
    settings.LANGUAGE_CODE, settings.USE_THOUSAND_SEPARATOR = "de", True
    config = RetrievalConfig.objects.create(id=1234, user=ada, is_active=False)
    assert hidden(act(admin_client, "activate", config))["_selected_action"] == ["1234"]
    shown = admin_client.get(url("change", config)).text
    preview = re.findall(
        r'type="number" name="(\w+)" id="id_preview\w+"[^>]*value="([^"]*)"', shown
    )
    assert preview == [("vector_weight", "0.7"), ("similarity_threshold", "0.0")]


def test_two_of_one_person_are_not_both_activated(ada: User, admin_client: Client) -> None:
    configs = [RetrievalConfig.objects.create(user=ada, is_active=False) for _ in range(2)]
    assert "two of one were selected" in confirmed(admin_client, "activate", *configs)
    assert not RetrievalConfig.objects.filter(is_active=True).exists()


def test_resetting_gives_the_site_s_values(ada: User, admin_client: Client) -> None:
    RetrievalConfig.objects.create(vector_weight=0.6, keyword_weight=0.4, max_results=7)
    config = RetrievalConfig.objects.create(user=ada, config_name="hers", vector_weight=0.7)
    asked = act(admin_client, "reset_to_site_default", config)
    changed = "vector weight 0.7 → 0.6, keyword weight 0.3 → 0.4, max results 10 → 7"
    assertContains(asked, changed)
    assertContains(asked, "make their configuration inactive instead")
    confirmed(admin_client, "reset_to_site_default", config)
    config.refresh_from_db()
    assert (config.vector_weight, config.max_results) == (0.6, 7)
    assert (config.user, config.config_name) == (ada, "hers")
    assert changed.rpartition(", ")[0] in history(config)[0]


def test_copying_changes_active_ones_and_makes_what_is_missing(
    ada: User, staff: User, admin_client: Client
) -> None:
    source = RetrievalConfig.objects.create(vector_weight=0.4, keyword_weight=0.6)
    hers = RetrievalConfig.objects.create(user=ada, config_name="hers")
    asked = act(admin_client, "copy_to_users", source)
    assertContains(asked, "User names, one a line")
    assertNotContains(asked, 'name="confirmed"')

    names = "ada\r\n\r\n grace \r\nada"
    asked = act(admin_client, "copy_to_users", source, names=names)
    assertContains(asked, "ada, “hers”: vector weight 0.7 → 0.4")
    assertContains(asked, "grace, “default”: new, weights 0.4 / 0.6")
    assert RetrievalConfig.objects.count() == 2

    confirmed(admin_client, "copy_to_users", source, names=names)
    hers.refresh_from_db()
    assert hers.vector_weight == 0.4
    new = RetrievalConfig.objects.get(user=staff)
    assert (new.vector_weight, new.is_active) == (0.4, True)
    assert "Added." in history(new)[0]


def test_copying_names_who_is_unknown_and_copies_to_nobody(
    ada: User, admin_client: Client
) -> None:
    source = RetrievalConfig.objects.create()
    asked = act(
        admin_client, "copy_to_users", source, names=f"ada\nadam\n{SCRIPT}", confirmed="yes"
    )
    assertContains(asked, "There is nobody called adam, &lt;script&gt;")
    assert RetrievalConfig.objects.count() == 1
    many = [source, RetrievalConfig.objects.create(user=ada)]
    assert "select the one to copy" in confirmed(admin_client, "copy_to_users", *many)


@pytest.mark.parametrize(
    ("permissions", "offered"),
    [
        (["view"], set()),
        (["view", "change"], {"activate", "reset_to_site_default"}),
        (["view", "change", "add"], {"activate", "reset_to_site_default", "copy_to_users"}),
        (["view", "add"], set()),
    ],
)
def test_bulk_actions_take_the_permissions_of_what_they_do(
    permissions: list[str], offered: set[str], ada: User, staff: User, client: Client
) -> None:
    allow(staff, *(f"{name}_retrievalconfig" for name in permissions))
    client.force_login(staff)
    config = RetrievalConfig.objects.create(user=ada, is_active=False)
    shown = client.get(LIST).text
    for action in ("activate", "reset_to_site_default", "copy_to_users"):
        assert (f'value="{action}"' in shown) is (action in offered)
        if action not in offered:
            act(client, action, config, confirmed="yes", names="grace")
    if "activate" not in offered:
        config.refresh_from_db()
        assert not config.is_active
    assert RetrievalConfig.objects.count() == 1


@pytest.mark.parametrize("way", ["the form", "the action", "the page of the person"])
@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("clean_tables")
def test_of_two_who_activate_at_once_the_later_one_is_told(
    way: str,
    ada: User,
    connect: Connect,
    pg: psycopg.Connection,
    admin_client: Client,
) -> None:
    config = RetrievalConfig.objects.create(user=ada, is_active=False)
    page = url("change", config)
    data = unedited(admin_client.get(page)) | {"is_active": "on"}
    if way == "the page of the person":
        page = person_page(ada)
        data = with_inline(admin_client.get(page)) | {"retrieval_configs-0-is_active": "on"}
    pids: Queue[int] = Queue()

    def activate() -> Any:
        with closing(connection), connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            pids.put(cursor.fetchone()[0])
            if way == "the action":
                return act(admin_client, "activate", config, confirmed="yes")
            return admin_client.post(page, data)

    # Active, but not to be seen yet: whoever looks finds nothing in the way.
    other = connect(autocommit=False)
    other.execute("INSERT INTO retrieval_configs (user_id) VALUES (%s)", [ada.pk])
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(activate)
        wait_until_blocked(pg, pids.get(timeout=30))
        other.commit()
        assert answer.result(timeout=30).status_code == 302
    assertContains(admin_client.get(LIST), "has just")
    config.refresh_from_db()
    assert not config.is_active
    assert history(config) == []


# --- The page of a person -----------------------------------------------------


def person_page(user: User) -> str:
    return reverse("admin:auth_user_change", args=[user.pk])


def with_inline(response: Any) -> dict[str, str]:
    """What a browser would send back from the page of a person."""
    data = {name: value for name, value in unedited(response).items() if value != "[]"}
    data |= {"date_joined_0": "2026-01-01", "date_joined_1": "00:00"}
    for inline in response.context["inline_admin_formsets"]:
        for form in [inline.formset.management_form, *inline.formset.forms]:
            for field in form:
                value = field.value()
                if value is not None and value is not False:
                    data[field.html_name] = "on" if value is True else str(value)
    return data


def test_weights_are_edited_on_the_page_of_the_person(ada: User, admin_client: Client) -> None:
    page = person_page(ada)
    data = with_inline(admin_client.get(page))
    assert errors(admin_client.post(page, data)) == []
    assert not RetrievalConfig.objects.exists()  # nobody filled it in

    prefix = "retrieval_configs-0"
    weights = {f"{prefix}-vector_weight": "0.9", f"{prefix}-keyword_weight": "0.1"}
    assert errors(admin_client.post(page, data | weights)) == []
    config = RetrievalConfig.objects.get(user=ada)
    assert config.vector_weight == 0.9

    data = with_inline(admin_client.get(page))
    assert data["retrieval_configs-TOTAL_FORMS"] == "1"
    assert errors(admin_client.post(page, data | {f"{prefix}-max_results": "5"})) == []
    assert history(config) == ["Added.", "Changed max results 10 → 5."]

    response = admin_client.post(page, data | {f"{prefix}-keyword_weight": "0.5"})
    assertContains(response, "The weights must sum to 1")


def test_a_second_active_one_is_refused_on_the_page_of_the_person(
    ada: User, admin_client: Client
) -> None:
    RetrievalConfig.objects.create(user=ada)
    data = with_inline(admin_client.get(person_page(ada)))
    first = {name: value for name, value in data.items() if name.startswith("retrieval_configs-0")}
    second = {name.replace("-0-", "-1-"): value for name, value in first.items()}
    del second["retrieval_configs-1-id"]
    second["retrieval_configs-1-max_results"] = "5"
    data |= second | {"retrieval_configs-TOTAL_FORMS": "2"}
    response = admin_client.post(person_page(ada), data)
    assertContains(response, "make that one inactive first")


def test_of_two_new_ones_on_the_page_of_the_person_one_may_be_active(
    ada: User, admin_client: Client
) -> None:
    data = with_inline(admin_client.get(person_page(ada)))
    first = {name: value for name, value in data.items() if name.startswith("retrieval_configs-0")}
    first["retrieval_configs-0-max_results"] = "5"
    second = {name.replace("-0-", "-1-"): value for name, value in first.items()}
    data |= first | second | {"retrieval_configs-TOTAL_FORMS": "2"}
    response = admin_client.post(person_page(ada), data)
    assertContains(response, "make the others inactive")
    assert not RetrievalConfig.objects.exists()

    assert "retrieval_configs-1-is_active" in data
    del data["retrieval_configs-1-is_active"]
    assert errors(admin_client.post(person_page(ada), data)) == []
    assert [config.is_active for config in RetrievalConfig.objects.order_by("pk")] == [True, False]


def test_weights_on_the_page_of_a_person_take_their_own_permission(
    ada: User, staff: User, client: Client
) -> None:
    allow(staff, "change_user", "view_user")
    client.force_login(staff)
    assertNotContains(client.get(person_page(ada)), "retrieval_configs-")
    allow(staff, "view_retrievalconfig")
    shown = client.get(person_page(ada))
    data = with_inline(shown)
    assert "retrieval_configs-0-vector_weight" not in data
    client.post(
        person_page(ada),
        data
        | {
            "retrieval_configs-TOTAL_FORMS": "1",
            "retrieval_configs-INITIAL_FORMS": "0",
            "retrieval_configs-0-vector_weight": "0.9",
            "retrieval_configs-0-keyword_weight": "0.1",
        },
    )
    assert not RetrievalConfig.objects.exists()


def test_a_person_is_made_before_their_weights(admin_client: Client) -> None:
    assertNotContains(admin_client.get(reverse("admin:auth_user_add")), "retrieval_configs-")


def test_a_project_s_own_page_of_people_is_kept(ada: User, rf: RequestFactory) -> None:
    class Theirs(UserAdmin):  # type: ignore[type-arg]
        list_display = ("email",)

    site = AdminSite()
    extend(site)
    assert not site.is_registered(User)
    site.register(User, Theirs)
    extend(site)
    page = site.get_model_admin(User)
    assert page.list_display == ("email",)
    assert page.get_inlines(rf.get("/"), ada) == [RetrievalConfigInline]
    assert not page.get_inlines(rf.get("/"), None)
