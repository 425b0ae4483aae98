"""Sessions in Redis and the database, their registry, and revocation that nothing undoes."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import psycopg
import pytest
from asgiref.sync import async_to_sync
from django.contrib.admin.models import LogEntry
from django.contrib.auth import alogin, alogout
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.models import Session
from django.core.cache import cache
from django.core.management import call_command
from django.db import connection, connections
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.test.utils import CaptureQueriesContext
from django.urls import path, reverse
from django.utils import timezone

from cartrita.urls import urlpatterns as site
from cartrita_search import sessions
from cartrita_search.errors import InvalidArgument, RedisUnavailable
from cartrita_search.models import OperatorAction, RedisSession
from cartrita_search.sessions import (
    DATA_TYPES,
    SessionStore,
    extend,
    fetch,
    key_hash,
    revoke,
    revoke_user,
    store,
)
from tests.postgres import scalar
from tests.redis_server import UseRedis, redis_behind_proxy, until
from tests.test_admin import hidden

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]

PASSWORD = "a pass phrase of ada"


async def count(request: HttpRequest) -> HttpResponse:
    """An async view that reads and writes the session."""
    seen = await request.session.aget("seen", 0) + 1
    await request.session.aset("seen", seen)
    return HttpResponse(f"{await request.auser()} {seen}")


async def log_in(request: HttpRequest) -> HttpResponse:
    await alogin(request, await User.objects.aget(username="ada"))
    return HttpResponse("in")


async def log_out(request: HttpRequest) -> HttpResponse:
    await alogout(request)
    return HttpResponse("out")


urlpatterns = [
    *site,
    path("count/", count),
    path("log-in/", log_in),
    path("log-out/", log_out),
]


@pytest.fixture(autouse=True)
def empty_redis() -> Iterator[None]:
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def ada() -> User:
    return User.objects.create_superuser("ada", password=PASSWORD)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Revocation takes no time, and every request reads the list of the revoked."""
    monkeypatch.setattr(sessions, "REVOCATION_SECONDS", 0.0)


Browser = Callable[..., Client]


@pytest.fixture
def browser(ada: User) -> Browser:
    """A browser that has logged in at the admin's page."""

    def _browser(user: User = ada, **headers: str) -> Client:
        client = Client(headers=headers or None)
        form = {"username": user.get_username(), "password": PASSWORD}
        response = client.post(reverse("admin:login"), form)
        assert response.status_code == HTTPStatus.FOUND, response.context["errors"]
        return client

    return _browser


def key_of(client: Client) -> str:
    return str(client.cookies["sessionid"].value)


def logged_in(client: Client) -> bool:
    return client.get(reverse("admin:index")).status_code == HTTPStatus.OK


def registered(client: Client) -> RedisSession:
    return RedisSession.objects.get(session_key_hash=key_hash(key_of(client)))


def in_redis(key: str, data_type: str = "session") -> str:
    """Where Redis has it, under the name that the cache takes."""
    return f"cartrita_search.{data_type}:{key_hash(key)}"


# --- Where a session is -----------------------------------------------------


def test_redis_database_and_registry_know_a_login_by_its_hash_alone(
    browser: Browser, ada: User
) -> None:
    client = browser(**{"User-Agent": "Mosaic/1.0"})
    key = key_of(client)
    digest = hashlib.sha256(key.encode()).hexdigest()

    row = registered(client)
    assert (row.session_key_hash, row.user, row.data_type) == (digest, ada, "session")
    assert row.metadata == {"ip": "127.0.0.1", "user_agent": "Mosaic/1.0"}
    assert row.ttl_seconds == 14 * 24 * 3600
    assert abs(row.expires_at - timezone.now() - timedelta(days=14)) < timedelta(minutes=1)

    session = Session.objects.get()
    assert session.session_key == digest[:40]
    assert session.get_decoded()["_auth_user_id"] == str(ada.pk)
    assert SessionStore().decode(cache.get(in_redis(key))) == {
        "key": digest,
        "data": session.get_decoded(),
    }
    names = list(cache.iter_keys("*"))  # type: ignore[attr-defined]
    assert names == [in_redis(key)]
    assert not [name for name in names if key in name]


def test_a_page_reads_no_session_from_the_database_while_redis_has_it(browser: Browser) -> None:
    client = browser()
    assert logged_in(client)
    with CaptureQueriesContext(connection) as queries:
        assert logged_in(client)
    assert not [query for query in queries if "django_session" in query["sql"]]


def test_a_flush_of_redis_logs_nobody_out(browser: Browser) -> None:
    client = browser()
    cache.clear()
    assert logged_in(client)
    assert cache.get(in_redis(key_of(client))) is not None


@pytest.mark.parametrize("value", [b"\x80\x04garbage", {"_auth_user_id": "1"}, "1:forged:text"])
def test_what_somebody_else_wrote_to_redis_is_not_believed(browser: Browser, value: Any) -> None:
    client, stranger = browser(), Client()
    stranger.cookies["sessionid"] = "a-key-that-nobody-gave-out"
    for someone in (client, stranger):
        cache.set(in_redis(key_of(someone)), value)
    assert logged_in(client)
    assert not logged_in(stranger)


def test_a_session_of_another_is_worth_nothing_under_ones_own_key(
    browser: Browser, ada: User
) -> None:
    client = browser()
    grace = browser(User.objects.create_user("grace", password=PASSWORD, is_staff=True))
    cache.set(in_redis(key_of(grace)), cache.get(in_redis(key_of(client))))
    assert grace.get(reverse("admin:index")).context["user"].username == "grace"


def test_what_no_serializer_can_read_is_not_believed(browser: Browser) -> None:
    client = browser()
    raw = cache.client.get_client()  # type: ignore[attr-defined]
    raw.set(cache.make_key(in_redis(key_of(client))), b"\xc1 neither JSON nor pickle")
    assert logged_in(client)


def test_anonymous_sessions_are_in_no_registry() -> None:
    client = Client()
    assert async_to_sync(AsyncClient().get)("/count/").content == b"AnonymousUser 1"
    session = client.session
    session["basket"] = [1, 2]
    session.save()
    assert Session.objects.count() == 2
    assert client.session["basket"] == [1, 2]
    assert not RedisSession.objects.exists()


def test_the_registry_follows_the_session_s_time(browser: Browser) -> None:
    client = browser()
    session = client.session
    session.set_expiry(600)
    session.save()
    row = registered(client)
    assert row.ttl_seconds == 600
    assert abs(row.expires_at - timezone.now() - timedelta(minutes=10)) < timedelta(minutes=1)
    assert row.metadata["ip"] == "127.0.0.1"


def test_a_logout_leaves_nothing(browser: Browser) -> None:
    client = browser()
    key = key_of(client)
    client.post(reverse("admin:logout"))
    assert not Session.objects.exists()
    assert not RedisSession.objects.exists()
    assert cache.get(in_redis(key)) is None


def test_a_logout_holds_that_redis_never_heard_of(
    browser: Browser, soon: None, settings: Any, request: pytest.FixtureRequest
) -> None:
    client = browser()
    key, alive = key_of(client), settings.CACHES
    request.getfixturevalue("dead_redis")
    client.post(reverse("admin:logout"))
    settings.CACHES = alive
    assert cache.get(in_redis(key)) is not None
    client.cookies["sessionid"] = key
    assert not logged_in(client)
    assert RedisSession.objects.get().revoked_at is not None


class Interrupted(SessionStore):
    """A session that is read from the database while something else happens."""

    __qualname__ = SessionStore.__qualname__  # what is signed is signed for that class

    def __init__(self, key: str, meanwhile: Callable[[SessionStore], None]) -> None:
        super().__init__(key)
        self._meanwhile = meanwhile

    def decode(self, session_data: bytes | str) -> Any:
        data = super().decode(session_data)
        self._meanwhile(SessionStore(self.session_key))
        return data


def test_what_was_read_from_the_database_takes_nothing_back_in_redis(browser: Browser) -> None:
    def save(session: SessionStore) -> None:
        session["seen"] = 2
        session.save()

    key = key_of(browser())
    cache.clear()
    Interrupted(key, save).load()
    assert SessionStore(key)["seen"] == 2
    cache.clear()
    Interrupted(key, SessionStore.delete).load()
    assert cache.get(in_redis(key)) is None
    assert SessionStore(key).load() == {}


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("clean_tables")
def test_a_logout_while_another_request_saves_the_session_holds(
    browser: Browser, pg: psycopg.Connection
) -> None:
    class Saving(SessionStore):
        """Another request logs out just before Redis is told what was saved."""

        __qualname__ = SessionStore.__qualname__

        def _entry(self, *arguments: Any) -> Any:
            thread.start()
            until(lambda: not thread.is_alive() or blocked())
            return super()._entry(*arguments)

    def blocked() -> bool:
        return bool(
            scalar(
                pg,
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                " AND query LIKE 'DELETE FROM \"django_session\"%%')",
            )
        )

    def log_out() -> None:
        try:
            SessionStore(key).delete()
        finally:
            connections.close_all()

    key = key_of(browser())
    thread = threading.Thread(target=log_out)
    saving = Saving(key)
    saving._session_cache = {**saving.load(), "seen": 1}  # type: ignore[attr-defined]
    saving.save()
    thread.join(30)
    assert cache.get(in_redis(key)) is None
    assert SessionStore(key).load() == {}
    assert not RedisSession.objects.exists()


def test_a_user_agent_that_jsonb_cannot_hold_is_taken_without_it(browser: Browser) -> None:
    client = browser(**{"User-Agent": "a\0b\x1b[2J" + "c" * 1000})
    agent = registered(client).metadata["user_agent"]
    assert agent.startswith("ab[2Jccc")
    assert len(agent) < 300


class Elsewhere:
    """A router that reads from a replica which is not there."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "replica"


def test_nothing_of_a_session_is_read_from_a_replica(
    ada: User, browser: Browser, settings: Any, soon: None
) -> None:
    key = key_of(browser())
    settings.DATABASE_ROUTERS = [Elsewhere()]
    assert SessionStore(key)["_auth_user_id"] == str(ada.pk)
    cache.clear()
    session = SessionStore(key)
    session["seen"] = 1
    session.save()
    session.cycle_key()
    assert revoke("session", session.session_key or "")
    assert not SessionStore(session.session_key).load()
    store("chat", "42", 1, 60)
    assert fetch("chat", "42") == 1
    assert extend("chat", "42", 600)
    SessionStore.clear_expired()


# --- Revocation -------------------------------------------------------------


def test_revoked_means_that_the_next_request_is_anonymous(browser: Browser, ada: User) -> None:
    """With the real interval: whoever has read the list before has read it again."""
    client, other = browser(), browser()
    key = key_of(client)
    kept = cache.get(in_redis(key))
    assert logged_in(client)

    assert revoke("session", key)
    # A request that was writing just then, or a Redis that was away.
    cache.set(in_redis(key), kept)
    assert not logged_in(client)
    assert logged_in(other)
    assert RedisSession.objects.get(session_key_hash=key_hash(key)).revoked_at is not None
    assert not revoke("session", key)


def test_all_of_a_person_s_are_revoked_and_nobody_else_s(
    browser: Browser, ada: User, soon: None
) -> None:
    grace = User.objects.create_superuser("grace", password=PASSWORD)
    hers = [browser(), browser()]
    another = browser(grace)
    store("chat", "42", ["hello"], 60, user=ada)
    store("chat", "43", ["hello"], 60, user=grace)

    assert revoke_user(ada) == 3
    assert [logged_in(client) for client in (*hers, another)] == [False, False, True]
    assert (fetch("chat", "42"), fetch("chat", "43")) == (None, ["hello"])
    assert revoke_user(ada) == 0


def test_a_request_that_is_under_way_does_not_write_a_revoked_session_back(
    browser: Browser, soon: None
) -> None:
    client = browser()
    under_way = SessionStore(key_of(client))
    under_way["seen"] = 1
    revoke("session", key_of(client))
    with pytest.raises(UpdateError):
        under_way.save()
    assert not Session.objects.exists()
    assert not logged_in(client)
    assert client.post(reverse("admin:login"), {}).status_code == HTTPStatus.OK


def test_who_was_revoked_may_log_in_again(browser: Browser, ada: User, soon: None) -> None:
    client = browser()
    revoke_user(ada)
    assert not logged_in(client)
    form = {"username": "ada", "password": PASSWORD}
    client.post(reverse("admin:login"), form)
    assert logged_in(client)
    assert RedisSession.objects.filter(revoked_at=None).count() == 1


def test_a_new_password_ends_the_other_sessions(browser: Browser, ada: User) -> None:
    client, other = browser(**{"User-Agent": "Mosaic/1.0"}), browser()
    form = {"old_password": PASSWORD, "new_password1": "another", "new_password2": "another"}
    form |= {name: "quite another phrase" for name in form if name != "old_password"}
    response = client.post(reverse("admin:password_change"), form)
    assert response.status_code == HTTPStatus.FOUND, response.context["errors"]

    (row,) = RedisSession.objects.all()
    assert row == registered(client)
    assert row.metadata["user_agent"] == "Mosaic/1.0"
    assert logged_in(client)
    assert not logged_in(other)


def test_a_password_that_somebody_else_sets_ends_all(browser: Browser, ada: User) -> None:
    client = browser()
    ada.refresh_from_db()
    ada.first_name = "Ada"
    ada.save()
    assert registered(client)
    ada.set_password("quite another phrase")
    ada.save(update_fields=["last_login"])
    assert registered(client)
    ada.save()
    assert not RedisSession.objects.exists()
    assert not logged_in(client)


def test_with_a_person_their_sessions_go(browser: Browser, ada: User) -> None:
    client = browser()
    store("chat", "42", ["hello"], 60, user=ada)
    ada.delete()
    assert not logged_in(client)
    assert not RedisSession.objects.exists()
    assert fetch("chat", "42") is None


def test_clearsessions_takes_what_has_expired_from_both_tables(browser: Browser) -> None:
    gone, live = browser(), browser()
    store("chat", "42", ["hello"], 60)
    past = timezone.now() - timedelta(seconds=1)
    digest = key_hash(key_of(gone))
    Session.objects.filter(pk=digest[:40]).update(expire_date=past)
    RedisSession.objects.filter(session_key_hash=digest).update(expires_at=past)
    call_command("clearsessions")
    assert Session.objects.count() == 1
    assert set(RedisSession.objects.values_list("session_key_hash", flat=True)) == {
        key_hash(key_of(live)),
        key_hash("42"),
    }


# --- Async ------------------------------------------------------------------


def test_async_views_have_the_same_sessions(ada: User, soon: None) -> None:
    client = AsyncClient()
    agent = {"user-agent": "Mosaic/1.0"}

    def get(page: str) -> str:
        return str(async_to_sync(client.get)(page, headers=agent).content.decode())

    assert [get("/count/"), get("/count/")] == ["AnonymousUser 1", "AnonymousUser 2"]
    before = client.cookies["sessionid"].value
    assert get("/log-in/") == "in"
    key = client.cookies["sessionid"].value
    assert key != before
    assert get("/count/") == "ada 3"
    cache.clear()
    assert get("/count/") == "ada 4"

    row = RedisSession.objects.get()
    assert row.session_key_hash == key_hash(key)
    assert row.metadata == {"ip": "127.0.0.1", "user_agent": "Mosaic/1.0"}
    assert Session.objects.get().pk == key_hash(key)[:40]

    revoke("session", key)
    assert get("/count/") == "AnonymousUser 1"
    get("/log-in/")
    get("/log-out/")
    assert RedisSession.objects.filter(revoked_at=None).count() == 0
    async_to_sync(SessionStore.aclear_expired)()


# --- Other data -------------------------------------------------------------


@pytest.mark.parametrize("data_type", DATA_TYPES)
def test_other_data_is_kept_extended_and_revoked(data_type: str, ada: User) -> None:
    value = {"messages": [{"role": "user", "content": "Guten Tag, \u00e6\0"}], "n": 1.5, "x": None}
    assert fetch(data_type, "42", "nothing") == "nothing"
    store(data_type, "42", value, 60, user=ada, metadata={"title": "Tea"})
    assert fetch(data_type, "42") == value
    assert [fetch(other, "42") for other in DATA_TYPES if other != data_type] == [None, None]

    row = RedisSession.objects.get()
    assert (row.user, row.data_type, row.ttl_seconds) == (ada, data_type, 60)
    assert row.metadata == {"title": "Tea"}
    assert 0 < cache.ttl(in_redis("42", data_type)) <= 60  # type: ignore[attr-defined]

    assert extend(data_type, "42", 3600)
    row.refresh_from_db()
    assert row.ttl_seconds == 3600
    assert row.expires_at > timezone.now() + timedelta(minutes=59)
    assert 3500 < cache.ttl(in_redis("42", data_type)) <= 3600  # type: ignore[attr-defined]

    kept = cache.get(in_redis("42", data_type))
    assert revoke(data_type, "42")
    assert cache.get(in_redis("42", data_type)) is None
    cache.set(in_redis("42", data_type), kept)
    assert fetch(data_type, "42") is None
    assert not extend(data_type, "42", 60)
    assert not revoke(data_type, "42")

    store(data_type, "42", "anew", 60)
    assert fetch(data_type, "42") == "anew"


@pytest.mark.parametrize("value", ["no JSON", b"no text", 7])
def test_what_somebody_else_wrote_among_other_data_is_not_there(value: Any) -> None:
    store("chat", "42", ["hello"], 60)
    cache.set(in_redis("42", "chat"), value)
    assert fetch("chat", "42", "nothing") == "nothing"


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
def test_metadata_that_jsonb_cannot_hold_are_refused(text: str) -> None:
    store("chat", "42", text, 60)
    with pytest.raises(InvalidArgument):
        store("chat", "42", "another", 60, metadata={"title": text})
    assert fetch("chat", "42") == text


def test_what_redis_lost_or_has_expired_is_not_there() -> None:
    store("chat", "42", ["hello"], 60)
    cache.clear()
    assert fetch("chat", "42") is None
    assert not extend("chat", "42", 60)

    store("chat", "42", ["hello"], 60)
    RedisSession.objects.update(expires_at=timezone.now())
    assert fetch("chat", "42") is None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("session", "42", 1, 60), "no data type 'session'"),
        (("letters", "42", 1, 60), "no data type 'letters'"),
        (("chat", "", 1, 60), "key must be a text"),
        (("chat", 42, 1, 60), "key must be a text"),
        (("chat", "42", 1, 0), "TTL must be"),
        (("chat", "42", 1, -60), "TTL must be"),
        (("chat", "42", 1, True), "TTL must be"),
        (("chat", "42", 1, 1.5), "TTL must be"),
        (("chat", "42", 1, 10**10), "TTL must be"),
        (("chat", "4\ud800", 1, 60), "key must be a text"),
        (("chat", "42", {1, 2}, 60), "nothing that JSON can say"),
        (("chat", "42", float("nan"), 60), "nothing that JSON can say"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_one_line(
    arguments: tuple[Any, ...], complaint: str
) -> None:
    with pytest.raises(InvalidArgument, match=complaint) as refused:
        store(*arguments)
    assert "Nothing was changed" in str(refused.value)
    assert not RedisSession.objects.exists()


# --- A dead Redis -----------------------------------------------------------


@pytest.fixture
def dead_redis(settings: Any) -> None:
    """Nobody listens there, and it is the breaker's business to say so quickly."""
    location = {"LOCATION": "redis://127.0.0.1:1/0", "OPTIONS": {"IGNORE_EXCEPTIONS": True}}
    settings.CACHES = {"default": settings.CACHES["default"] | location}


@pytest.mark.usefixtures("dead_redis")
def test_without_redis_people_log_in_work_and_log_out(browser: Browser, ada: User) -> None:
    client = browser()
    assert logged_in(client)
    page = reverse("admin:auth_user_change", args=[ada.pk])
    assert client.get(page).status_code == HTTPStatus.OK
    assert registered(client).revoked_at is None
    client.post(reverse("admin:logout"))
    assert not logged_in(client)


@pytest.mark.slow
@pytest.mark.parametrize("outage", ["hangs", "is killed, and starts with an older state"])
def test_a_revocation_holds_while_redis_is_away_and_when_it_is_back(
    outage: str, browser: Browser, ada: User, use_redis: UseRedis
) -> None:
    with redis_behind_proxy() as (server, proxy):
        use_redis(proxy.url)
        client = browser()
        key = key_of(client)
        with closing(server.client()) as asked:
            asked.save()
        if outage == "hangs":
            proxy.silence()
        else:
            server.kill()
        assert logged_in(client)
        revoke_user(ada)
        assert not logged_in(client)

        if outage == "hangs":
            proxy.speak()
        else:
            server.start()
            with closing(server.client()) as asked:
                assert asked.exists(cache.make_key(in_redis(key))) == 1
        client.cookies["sessionid"] = key
        until(lambda: cache.get_or_set("back", "yes") and "back" in cache)
        assert not logged_in(client)


@pytest.mark.usefixtures("dead_redis")
def test_other_data_without_redis_is_one_clear_line() -> None:
    RedisSession.objects.create(
        session_key_hash=key_hash("41"),
        data_type="chat",
        ttl_seconds=60,
        expires_at=timezone.now() + timedelta(minutes=1),
    )
    for attempt in (
        lambda: store("chat", "42", 1, 60),
        lambda: fetch("chat", "41"),
        lambda: extend("chat", "41", 600),
    ):
        with pytest.raises(RedisUnavailable, match="REDIS_URL") as raised:
            attempt()
        assert raised.value.exit_code == 75
    assert RedisSession.objects.get().ttl_seconds == 60


def test_without_a_redis_at_all_sessions_are_in_the_database(
    settings: Any, browser: Browser, ada: User, soon: None
) -> None:
    settings.CACHES = settings.CACHES | {
        "none": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}
    }
    settings.SESSION_CACHE_ALIAS = "none"
    client, other = browser(), browser()
    assert logged_in(client)
    revoke("session", key_of(client))
    assert [logged_in(client), logged_in(other)] == [False, True]
    client.post(reverse("admin:logout"))
    with pytest.raises(RedisUnavailable):
        store("chat", "42", 1, 60)


# --- The admin --------------------------------------------------------------

LIST = "admin:cartrita_search_redissession_changelist"


def act(client: Client, action: str, rows: list[RedisSession], **more: str) -> Any:
    data = {"action": action, "_selected_action": [str(row.pk) for row in rows]} | more
    return client.post(reverse(LIST), data)


@pytest.fixture
def staff(ada: User) -> User:
    """Who may look through the registry."""
    user = User.objects.create_user("grace", password=PASSWORD, is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_redissession"))
    return user


def test_staff_look_through_the_registry(browser: Browser, ada: User) -> None:
    client = browser(**{"User-Agent": "Mosaic/1.0"})
    browser(User.objects.create_superuser("hopper", password=PASSWORD))
    for query, found in (
        ("q=ada", 1),
        ("q=hopper", 1),
        ("q=Mosaic", 1),
        ("q=127.0.0.1", 2),
        (f"q={key_hash(key_of(client))[:12]}", 1),
        ("state=live", 2),
        ("state=revoked", 0),
        ("state=expired", 0),
        ("q=nobody", 0),
    ):
        response = client.get(f"{reverse(LIST)}?{query}")
        assert response.context["cl"].result_count == found, query
    assert "Mosaic/1.0" in client.get(reverse(LIST)).text


def test_one_session_is_revoked_after_a_question(browser: Browser, ada: User, soon: None) -> None:
    admin, victim, other = browser(), browser(), browser()
    rows = [registered(victim)]

    question = act(admin, "revoke_selected", rows)
    assert "are you sure" in question.text
    assert f'value="{rows[0].pk}"' in question.text
    assert logged_in(victim)
    assert not OperatorAction.objects.exists()

    assert act(admin, "revoke_selected", rows, confirmed="yes").status_code == HTTPStatus.FOUND
    assert [logged_in(client) for client in (admin, victim, other)] == [True, False, True]
    entry = LogEntry.objects.get()
    assert (entry.user, entry.object_id) == (ada, str(rows[0].pk))
    assert entry.get_change_message() == "Revoked."
    action = OperatorAction.objects.get()
    assert (action.action, action.subject, action.outcome) == ("revoke", "ada", "done")
    assert action.details == {"entries": 1, "by": "ada"}

    # There is nothing left to be asked about, and nothing more to write down.
    act(admin, "revoke_selected", rows)
    assert OperatorAction.objects.count() == 1


def test_all_of_a_person_are_revoked_by_one_of_them(
    browser: Browser, ada: User, staff: User, soon: None
) -> None:
    admin = browser()
    hers = [browser(staff), browser(staff)]
    store("workflow", "7", {"step": 2}, 60, user=staff)
    store("workflow", "8", {"step": 2}, 60)
    rows = [registered(hers[0])]

    question = act(admin, "revoke_all_of_the_person", rows)
    assert question.text.count("<li>session") == 2
    assert question.text.count("<li>workflow") == 1
    act(admin, "revoke_all_of_the_person", rows, confirmed="yes")
    assert [logged_in(client) for client in (admin, *hers)] == [True, False, False]
    assert (fetch("workflow", "7"), fetch("workflow", "8")) == (None, {"step": 2})
    assert OperatorAction.objects.get().details["entries"] == 3


def test_all_that_match_are_revoked_however_many_they_are(
    browser: Browser, ada: User, staff: User, soon: None, settings: Any
) -> None:
    admin = browser()
    hers = [browser(staff) for _ in range(8)]
    settings.DATA_UPLOAD_MAX_NUMBER_FIELDS = 6
    page = f"{reverse(LIST)}?q=grace"
    selected = {"_selected_action": str(registered(hers[0]).pk), "select_across": "1"}
    question = admin.post(page, selected | {"action": "revoke_selected"})
    assert question.text.count("<li>session") == 8
    assert admin.post(page, hidden(question)).status_code == HTTPStatus.FOUND
    assert [logged_in(client) for client in (admin, *hers)] == [True] + [False] * 8


def test_who_revokes_the_own_session_is_sent_to_log_in(browser: Browser, soon: None) -> None:
    client = browser()
    response = act(client, "revoke_selected", [registered(client)], confirmed="yes")
    assert response.status_code == HTTPStatus.FOUND
    assert not logged_in(client)


def test_revoking_takes_its_permission(
    browser: Browser, ada: User, staff: User, soon: None
) -> None:
    victim, client = browser(), browser(staff)
    rows = [registered(victim)]
    assert "revoke_selected" not in client.get(reverse(LIST)).text
    for action in ("revoke_selected", "revoke_all_of_the_person"):
        act(client, action, rows, confirmed="yes")
        assert logged_in(victim)

    staff.user_permissions.add(Permission.objects.get(codename="revoke_redissession"))
    assert "revoke_selected" in client.get(reverse(LIST)).text
    act(client, "revoke_selected", rows, confirmed="yes")
    assert not logged_in(victim)
