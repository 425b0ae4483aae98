"""Redis by the URLs of production: sentinels that name the primary, and TLS."""

from __future__ import annotations

import os
import runpy
from contextlib import closing
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import trustme
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.core.cache import cache
from django.core.exceptions import ImproperlyConfigured
from django.test import Client
from django.urls import reverse
from environ import Env

from cartrita_search.sessions import key_hash, revoke_user
from tests.redis_server import StartRedis, UseRedis, until

SETTINGS = django_settings.BASE_DIR / "cartrita" / "settings.py"

# --- URLs -------------------------------------------------------------------


def parsed(url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(
        Env, "ENVIRON", {"ENV_FILE": os.devnull, "DEBUG": "true", "REDIS_URL": url}
    )
    caches: dict[str, Any] = runpy.run_path(str(SETTINGS))["CACHES"]["default"]
    return caches


def test_a_url_of_sentinels_names_them_their_service_and_both_logins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = parsed(
        "rediss+sentinel://me:p%40ss@one:26380,[::1]:26381,three/cartrita/2"
        "?sentinel_password=s%26s&ssl_ca_certs=/ca.pem&ssl_check_hostname=false",
        monkeypatch,
    )
    assert cache["LOCATION"] == (
        "redis://me:p%40ss@cartrita/2?ssl_ca_certs=%2Fca.pem&ssl_check_hostname=false"
    )
    options = cache["OPTIONS"]
    assert options["SENTINELS"] == [("one", 26380), ("::1", 26381), ("three", 26379)]
    assert options["CONNECTION_POOL_KWARGS"]["ssl"] is True
    sentinel = options["SENTINEL_KWARGS"]
    assert (sentinel["ssl"], sentinel["ssl_ca_certs"]) == (True, "/ca.pem")
    assert (sentinel["ssl_check_hostname"], sentinel["password"]) == (False, "s&s")


@pytest.mark.parametrize("url", ["redis://r:1/2", "rediss://r:1/2?ssl_ca_certs=/ca.pem"])
def test_a_url_of_one_server_is_taken_as_it_is(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = parsed(url, monkeypatch)
    assert cache["LOCATION"] == url
    assert "SENTINELS" not in cache["OPTIONS"]


@pytest.mark.parametrize(
    "url",
    [
        "http://host/0",
        "host:6379",
        "redis://:se/cret@host/0",
        "redis+sentinel://:secret@host:port/cartrita",
        "redis+sentinel://:secret@host:26379",
        "redis+sentinel://:secret@/cartrita",
        "redis+sentinel://:secret@host/Cartrita",
    ],
)
def test_a_url_that_cannot_be_used_is_one_line_without_its_password(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ImproperlyConfigured, match="REDIS_URL") as refused:
        parsed(url, monkeypatch)
    for part in ("se/cret", "secret", "'se'"):
        assert part not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.__cause__ is None


# --- Sentinel ---------------------------------------------------------------

SENTINEL = """
port {{port}}
requirepass of-sentinels
sentinel monitor cartrita 127.0.0.1 {primary} 1
sentinel auth-pass cartrita secret
sentinel down-after-milliseconds cartrita 500
sentinel failover-timeout cartrita 5000
"""
LOGIN = ("--requirepass", "secret", "--masterauth", "secret")


@pytest.mark.slow
@pytest.mark.django_db
def test_when_the_primary_dies_people_stay_logged_in_and_the_next_one_is_found(
    start_redis: StartRedis, use_redis: UseRedis
) -> None:
    primary = start_redis(*LOGIN)
    replica = start_redis(*LOGIN, "--replicaof", f"127.0.0.1 {primary.port}")
    with closing(replica.client(password="secret")) as asked:
        until(lambda: asked.info("replication")["master_link_status"] == "up")
    sentinel = start_redis(sentinel=SENTINEL.format(primary=primary.port))
    # One of the sentinels is dead, as it may be.
    use_redis(
        f"redis+sentinel://:secret@127.0.0.1:1,127.0.0.1:{sentinel.port}/cartrita/0"
        "?sentinel_password=of-sentinels"
    )

    ada = User.objects.create_superuser("ada", password="secret")
    client = Client()
    form = {"username": "ada", "password": "secret"}
    assert client.post(reverse("admin:login"), form).status_code == HTTPStatus.FOUND

    def logged_in() -> bool:
        return client.get(reverse("admin:index")).status_code == HTTPStatus.OK

    key = cache.make_key(f"cartrita_search.session:{key_hash(client.cookies['sessionid'].value)}")
    with closing(primary.client(password="secret")) as asked:
        assert asked.exists(key) == 1

    with (
        closing(sentinel.client(password="of-sentinels")) as watching,
        watching.pubsub(ignore_subscribe_messages=True) as events,  # type: ignore[no-untyped-call]
    ):
        until(lambda: watching.sentinel_slaves("cartrita"))
        events.subscribe("+switch-master")
        primary.kill()
        assert logged_in()
        until(lambda: events.get_message(timeout=1))

    until(lambda: cache.get_or_set("after", "the switch") and "after" in cache)
    assert logged_in()
    with closing(replica.client(password="secret")) as asked:
        assert asked.info("replication")["role"] == "master"
        assert asked.exists(key, cache.make_key("after")) == 2

    revoke_user(ada)
    assert not logged_in()


# --- TLS --------------------------------------------------------------------


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """ca.pem, and the certificate and key of a server called localhost."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server = authority.issue_cert("localhost", "127.0.0.1")
    server.private_key_pem.write_to_path(tmp_path / "key.pem")
    server.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    return tmp_path


def tls(folder: Path) -> list[str]:
    return [
        *("--port", "0", "--tls-port", "{port}", "--tls-auth-clients", "no"),
        *("--tls-cert-file", str(folder / "cert.pem"), "--tls-key-file", str(folder / "key.pem")),
        *("--tls-ca-cert-file", str(folder / "ca.pem")),
    ]


def test_redis_over_tls_is_verified(
    start_redis: StartRedis, use_redis: UseRedis, certificates: Path
) -> None:
    server = start_redis(*tls(certificates))
    use_redis(f"rediss://localhost:{server.port}/0?ssl_ca_certs={certificates / 'ca.pem'}")
    cache.set("key", "value")
    assert cache.get("key") == "value"
    # Somebody else's certificate, as far as the system's authorities know.
    use_redis(f"rediss://localhost:{server.port}/0")
    assert cache.get("key") is None


def test_sentinels_and_their_servers_over_tls(
    start_redis: StartRedis, use_redis: UseRedis, certificates: Path
) -> None:
    server = start_redis(*tls(certificates))
    configured = "\n".join(
        [
            "tls-port {port}",
            "port 0",
            "tls-replication yes",
            "tls-auth-clients no",
            f"tls-cert-file {certificates / 'cert.pem'}",
            f"tls-key-file {certificates / 'key.pem'}",
            f"tls-ca-cert-file {certificates / 'ca.pem'}",
            f"sentinel monitor cartrita 127.0.0.1 {server.port} 1",
        ]
    )
    sentinel = start_redis(sentinel=configured)
    use_redis(
        f"rediss+sentinel://localhost:{sentinel.port}/cartrita/0"
        f"?ssl_ca_certs={certificates / 'ca.pem'}"
    )
    cache.set("key", "value")
    assert cache.get("key") == "value"
