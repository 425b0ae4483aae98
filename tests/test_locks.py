"""Advisory locks on a connection of one's own, as commands hold them."""

from __future__ import annotations

import threading

import psycopg
import pytest

from cartrita_search.db import (
    MIGRATION_LOCK,
    LockHolder,
    advisory_lock,
    direct_connection,
    lock_holder,
)
from cartrita_search.errors import DatabaseUnreachable, LockHeld

from .conftest import Connect

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("clean_tables")]


def test_the_second_is_told_who_holds_the_lock_and_gives_up_at_the_deadline(
    connect: Connect,
) -> None:
    first = connect(application_name="first")
    told: list[LockHolder | None] = []
    with advisory_lock(first, MIGRATION_LOCK), direct_connection("second") as second:
        with (
            pytest.raises(LockHeld, match=rf"pid {first.info.backend_pid} .*first"),
            advisory_lock(second, MIGRATION_LOCK, wait=0.3, waiting=told.append),
        ):
            pass
        assert [holder.pid for holder in told if holder] == [first.info.backend_pid]
    assert LockHeld.exit_code == 75


def test_the_second_has_the_lock_when_the_first_gives_it_up(connect: Connect) -> None:
    first = connect(application_name="first")
    waiting = threading.Event()
    held = threading.Event()

    def second() -> None:
        with (
            direct_connection("second") as connection,
            advisory_lock(connection, MIGRATION_LOCK, wait=60, waiting=lambda _: waiting.set()),
        ):
            held.set()

    thread = threading.Thread(target=second)
    with advisory_lock(first, MIGRATION_LOCK):
        thread.start()
        assert waiting.wait(30)
        assert not held.is_set()
    thread.join(30)
    assert held.is_set()
    assert lock_holder(first, MIGRATION_LOCK) is None


def test_a_lock_is_gone_with_its_connection(connect: Connect, pg: psycopg.Connection) -> None:
    with direct_connection("holder") as holder, advisory_lock(holder, MIGRATION_LOCK):
        found = lock_holder(pg, MIGRATION_LOCK)
        assert found is not None
        assert found.application == "holder"
        pg.execute("SELECT pg_terminate_backend(%s, 10000)", [found.pid])
        assert lock_holder(pg, MIGRATION_LOCK) is None
        holder.close()


def test_a_server_that_is_not_there_is_one_clear_line(settings: pytest.MonkeyPatch) -> None:
    settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {  # type: ignore[attr-defined]
        "DIRECT_DATABASE_URL": "postgres://nobody:secret@localhost:1/nothing"
    }
    with (
        pytest.raises(DatabaseUnreachable, match="MIGRATE_DATABASE_URL") as raised,
        direct_connection("nobody"),
    ):
        pass
    assert "secret" not in str(raised.value)
