"""Sessions in Redis with the database behind, and the registry of what Redis keeps for people.

``SESSION_ENGINE = "cartrita_search.sessions"``. Redis and the database know a session by the
SHA-256 of its key, so neither gives away a key that works. What Redis holds is signed, for
its key: who can write there can neither forge a session nor put one in another's place.
Without a shared cache, let ``SESSION_CACHE_ALIAS`` name a dummy one.

Every session of a person who is logged in has its row in ``redis_sessions``; anonymous
ones have none, for there is nobody whose they are. `store`, `fetch` and `extend` keep other
data in Redis under the same registry. `revoke`, `revoke_entries` and `revoke_user` end
either.

PostgreSQL alone decides what is live. A session that was revoked leaves its row behind, with
``revoked_at``, until it would have expired; each process reads these rows again when its
last look is `REVOCATION_SECONDS` old, and `revoke_entries` returns after that time. So
neither a Redis that was away when the entry was deleted, nor one that went back to an older
state, nor a request that was writing the entry just then, brings a session back.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.backends.db import SessionStore as DatabaseStore
from django.contrib.sessions.base_session import AbstractBaseSession
from django.core.cache import caches
from django.core.cache.backends.dummy import DummyCache
from django.db import DatabaseError, router, transaction
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest
from django.utils import timezone

from .errors import InvalidArgument, RedisUnavailable, search_errors
from .models import RedisSession

logger = logging.getLogger(__name__)

#: How old a process's knowledge of revoked sessions may be, and how long a revocation takes.
REVOCATION_SECONDS = 1.0

SESSION = "session"
#: What else v2 keeps in Redis.
DATA_TYPES = ("chat", "workflow", "cache")
#: Ten years: what is to stay longer does not belong into Redis.
MAXIMUM_TTL_SECONDS = 315_360_000

#: Where a session keeps from where it was opened; the registry shows it.
_CLIENT = "_cartrita_client"
_USER_AGENT_CHARACTERS = 300


def key_hash(key: str) -> str:
    """SHA-256 of a key, in hexadecimal: what stands in the registry."""
    return hashlib.sha256(key.encode()).hexdigest()


def _stored_key(digest: str) -> str:
    """The key of the row in the database, which holds 40 characters: 160 bits."""
    return digest[:40]


def _cache_key(data_type: str, digest: str) -> str:
    return f"cartrita_search.{data_type}:{digest}"


def _cache() -> Any:
    # Typed as BaseCache is, nothing could come of set(), of which django-redis returns None
    # where Redis did not answer.
    return caches[settings.SESSION_CACHE_ALIAS]


def _text_in_redis(data_type: str, digest: str) -> str | None:
    """What Redis has there; None where it has nothing, or is away; "" for nothing of ours."""
    try:
        text = _cache().get(_cache_key(data_type, digest))
    except Exception:  # whatever a serializer makes of a foreign value
        logger.warning("Redis holds a %s that cannot be read.", data_type, exc_info=True)
        return ""
    return text if isinstance(text, str | None) else ""


def _registry() -> QuerySet[RedisSession]:
    # Never a replica, which may lag behind a revocation.
    return RedisSession.objects.using(router.db_for_write(RedisSession))


def _live() -> QuerySet[RedisSession]:
    return _registry().filter(revoked_at=None, expires_at__gt=Now())


class _Revoked:
    """The hashes of revoked sessions, read again when they are `REVOCATION_SECONDS` old."""

    def __init__(self) -> None:
        self._known: tuple[float, frozenset[str]] = (float("-inf"), frozenset())

    def __contains__(self, digest: str) -> bool:
        asked = time.monotonic()
        read_at, hashes = self._known
        if asked - read_at >= REVOCATION_SECONDS:
            revoked = _registry().filter(revoked_at__isnull=False, expires_at__gt=Now())
            hashes = frozenset(
                revoked.filter(data_type=SESSION).values_list("session_key_hash", flat=True)
            )
            # As old as the question, not as the answer.
            self._known = (asked, hashes)
        return digest in hashes


_revoked = _Revoked()


class SessionStore(DatabaseStore):
    """Django's session in the database, read from Redis where it is there."""

    def load(self) -> dict[str, Any]:
        digest = key_hash(self.session_key or "")
        encoded = _text_in_redis(SESSION, digest)
        kept = self.decode(encoded) if encoded else {}
        if kept.get("key") == digest and digest not in _revoked:
            data: dict[str, Any] = kept["data"]
            return data
        row = self._rows().filter(pk=_stored_key(digest), expire_date__gt=timezone.now()).first()
        if row is None:
            self._session_key = None
            return {}
        data = self.decode(row.session_data)
        entry = self._entry(digest, data, self.get_expiry_age(expiry=row.expire_date))
        self._put_back(digest, entry, replace=encoded is not None)
        return data

    def save(self, must_create: bool = False) -> None:
        if self.session_key is None:
            self.create()
            return
        digest = key_hash(self.session_key)
        data = self._get_session(no_load=must_create)  # type: ignore[attr-defined]
        try:
            with transaction.atomic(using=router.db_for_write(self.model)):
                super().save(must_create)
                if SESSION_KEY in data:
                    self._register(digest, data)
                # Before the commit: a logout waits for the row, and then takes this away.
                _cache().set(*self._entry(digest, data, self.get_expiry_age()))
        except DatabaseError:
            _cache().delete(_cache_key(SESSION, digest))
            raise

    def delete(self, session_key: str | None = None) -> None:
        key = session_key or self.session_key
        if key is None:
            return
        digest = key_hash(key)
        self._rows().filter(pk=_stored_key(digest)).delete()
        registered = _registry().filter(
            data_type=SESSION, session_key_hash=digest, revoked_at=None
        )
        # None, neither True nor False: Redis did not answer, and may come back with it.
        if _cache().delete(_cache_key(SESSION, digest)) is None:
            registered.update(revoked_at=Now())
        else:
            registered.delete()

    def exists(self, session_key: str) -> bool:
        return self._rows().filter(pk=_stored_key(key_hash(session_key))).exists()

    def create_model_instance(self, data: dict[str, Any]) -> AbstractBaseSession:
        row = super().create_model_instance(data)
        row.session_key = _stored_key(key_hash(row.session_key))
        return row

    @classmethod
    def clear_expired(cls) -> None:
        """Delete what has expired, in the registry too."""
        super().clear_expired()
        _registry().filter(expires_at__lt=timezone.now()).delete()

    # The parent's are its own; these are the methods above, in a thread.
    aload = SessionBase.aload
    asave = SessionBase.asave
    adelete = SessionBase.adelete
    aexists = SessionBase.aexists
    acreate = SessionBase.acreate

    @classmethod
    async def aclear_expired(cls) -> None:
        await sync_to_async(cls.clear_expired)()

    @classmethod
    def _rows(cls) -> QuerySet[AbstractBaseSession]:
        model = cls.get_model_class()
        return model._default_manager.using(router.db_for_write(model))

    def _entry(self, digest: str, data: Mapping[str, Any], seconds: int) -> tuple[str, str, int]:
        """What Redis is to hold: under which key, and for how long."""
        return _cache_key(SESSION, digest), self.encode({"key": digest, "data": data}), seconds

    def _put_back(self, digest: str, entry: tuple[str, str, int], *, replace: bool) -> None:
        """Let Redis have what the database had a moment ago, and nothing that is older."""
        if isinstance(_cache(), DummyCache):
            return
        # Over nothing that another request has saved since.
        put = _cache().set if replace else _cache().add
        if put(*entry) and not self._rows().filter(pk=_stored_key(digest)).exists():
            _cache().delete(entry[0])  # a logout since, which may have been there first

    def _register(self, digest: str, data: Mapping[str, Any]) -> None:
        """Put the registry's row in step: its person, its time, from where it was opened."""
        _upsert(
            RedisSession(
                session_key_hash=digest,
                data_type=SESSION,
                user_id=data[SESSION_KEY],
                ttl_seconds=max(1, int(self.get_expiry_age())),
                expires_at=self.get_expiry_date(),
                metadata=data.get(_CLIENT, {}),
            ),
        )


def _upsert(entry: RedisSession, *also: str) -> None:
    _registry().bulk_create(
        [entry],
        update_conflicts=True,
        unique_fields=["data_type", "session_key_hash"],
        update_fields=["user", "ttl_seconds", "expires_at", "metadata", *also],
    )


# --- Other data -------------------------------------------------------------


def store(
    data_type: str,
    key: str,
    value: Any,
    ttl: int,
    *,
    user: Any | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Keep ``value`` in Redis under ``key`` for ``ttl`` seconds, and its row in the registry.

    ``data_type`` is one of `DATA_TYPES`, each with keys of its own; ``value`` and
    ``metadata`` (which staff see) are whatever JSON can say. What was there before is
    replaced, also if it was revoked. Raises `InvalidArgument`, and `RedisUnavailable` where
    it could not be kept.
    """
    digest = _entry_hash(data_type, key)
    _check_ttl(ttl)
    text = _json(value, "value")
    shown = json.loads(_json(dict(metadata or {}), "metadata"))
    entry = RedisSession(
        session_key_hash=digest,
        data_type=data_type,
        user=user,
        ttl_seconds=ttl,
        expires_at=timezone.now() + timedelta(seconds=ttl),
        revoked_at=None,
        metadata=shown,
    )
    # Both or neither; an entry in Redis without its row would never be found.
    with search_errors(), transaction.atomic(using=router.db_for_write(RedisSession)):
        _upsert(entry, "revoked_at")
        if not _cache().set(_cache_key(data_type, digest), text, ttl):
            raise _unavailable()


def fetch(data_type: str, key: str, default: Any = None) -> Any:
    """What `store` kept, or ``default`` if it has expired, was revoked, or Redis lost it.

    Costs one query, of the registry. Raises `RedisUnavailable` where Redis does not answer.
    """
    digest = _entry_hash(data_type, key)
    if not _live().filter(data_type=data_type, session_key_hash=digest).exists():
        return default
    text = _text_in_redis(data_type, digest)
    if text is None and _cache().has_key(_cache_key(data_type, digest)) is None:
        raise _unavailable()
    try:
        return default if text is None else json.loads(text)
    except ValueError:
        return default


def extend(data_type: str, key: str, ttl: int) -> bool:
    """Let the entry live for ``ttl`` seconds from now; returns whether there is one.

    Raises `InvalidArgument`, and `RedisUnavailable`, when it lives as long as before.
    """
    digest = _entry_hash(data_type, key)
    _check_ttl(ttl)
    entry = _live().filter(data_type=data_type, session_key_hash=digest)
    if not entry.exists():
        return False
    touched = _cache().touch(_cache_key(data_type, digest), ttl)
    if touched is None:
        raise _unavailable()
    return bool(touched) and bool(
        entry.update(ttl_seconds=ttl, expires_at=timezone.now() + timedelta(seconds=ttl))
    )


def _entry_hash(data_type: str, key: str) -> str:
    if data_type not in DATA_TYPES:
        raise InvalidArgument(
            f"There is no data type {data_type!r}.",
            f"Nothing was changed. There are: {', '.join(DATA_TYPES)}.",
        )
    try:
        if isinstance(key, str) and key:
            return key_hash(key)
    except UnicodeEncodeError:  # half of a surrogate pair
        pass
    raise InvalidArgument("A key must be a text, and not empty.", "Nothing was changed.")


def _check_ttl(ttl: int) -> None:
    whole = isinstance(ttl, int) and not isinstance(ttl, bool)
    if not whole or not 1 <= ttl <= MAXIMUM_TTL_SECONDS:
        raise InvalidArgument(
            f"A TTL must be a whole number of seconds from 1 to {MAXIMUM_TTL_SECONDS}.",
            "Nothing was changed.",
        )


def _json(value: object, name: str) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"The {name} is nothing that JSON can say: {error}.", "Nothing was changed."
        ) from error


def _unavailable() -> RedisUnavailable:
    return RedisUnavailable(
        "Redis does not answer, or none is configured.",
        "Nothing was changed. Check REDIS_URL, and try again when Redis is back.",
    )


# --- Revocation -------------------------------------------------------------


def revoke(data_type: str, key: str) -> bool:
    """End the entry of that key, a session's too; returns whether there was a live one."""
    digest = key_hash(key) if data_type == SESSION else _entry_hash(data_type, key)
    return revoke_entries(_live().filter(data_type=data_type, session_key_hash=digest)) > 0


def revoke_user(user: Any) -> int:
    """End all live sessions and entries of a person; returns how many."""
    return revoke_entries(_live().filter(user=user))


def revoke_entries(entries: QuerySet[RedisSession]) -> int:
    """End the live ones among these rows of the registry; returns how many.

    When this returns, the next request of each such session is anonymous, in every
    process, whether or not Redis was there. It takes `REVOCATION_SECONDS`, and a
    transaction of its own: not within another one, which could still be taken back.
    """
    using = router.db_for_write(RedisSession)
    with transaction.atomic(using=using, durable=True):
        wanted = entries.using(using).order_by().values("pk")
        live = _live().filter(pk__in=wanted)
        found = list(live.values_list("data_type", "session_key_hash", "pk"))
        sessions = [_stored_key(digest) for data_type, digest, _ in found if data_type == SESSION]
        # First the session's own row, as in saving it: neither waits for the other in a ring.
        SessionStore._rows().filter(pk__in=sessions).delete()
        revoked = _live().filter(pk__in=[pk for *_, pk in found]).update(revoked_at=Now())
    _cache().delete_many([_cache_key(data_type, digest) for data_type, digest, _ in found])
    if sessions:
        time.sleep(REVOCATION_SECONDS)
    return revoked


# --- Signals (connected in apps.py) -----------------------------------------


def remember_client(request: HttpRequest, **kwargs: Any) -> None:
    """On login: from where, for the registry. The address is that of the connection."""
    session = getattr(request, "session", None)
    if isinstance(session, SessionStore):
        agent = request.headers.get("User-Agent", "")[:_USER_AGENT_CHARACTERS]
        session[_CLIENT] = {
            "ip": request.META.get("REMOTE_ADDR", ""),
            # jsonb takes no NUL, and a page no control characters.
            "user_agent": "".join(c for c in agent if c.isprintable()),
        }


def forget_ended(
    instance: Any,
    created: bool,
    raw: bool = False,
    update_fields: frozenset[str] | None = None,
    **kwargs: Any,
) -> None:
    """When a person was saved: sessions that a new password has ended leave the registry.

    Django itself ends them: their next request does not fit the person's hash.
    """
    same_password = update_fields is not None and "password" not in update_fields
    if created or raw or same_password or not hasattr(instance, "get_session_auth_hash"):
        return
    hashes = {instance.get_session_auth_hash(), *instance.get_session_auth_fallback_hash()}
    registered = list(_live().filter(data_type=SESSION, user=instance))
    sessions = (
        SessionStore()
        ._rows()
        .in_bulk([_stored_key(entry.session_key_hash) for entry in registered])
    )
    ended = []
    for entry in registered:
        session = sessions.get(_stored_key(entry.session_key_hash))
        if session is None or session.get_decoded().get(HASH_SESSION_KEY) not in hashes:
            ended.append(entry.pk)
    if ended:
        _registry().filter(pk__in=ended).delete()
