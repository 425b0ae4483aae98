"""Accounts of v1's people: their ids, names and rights, and passwords that go on working.

An account that is there is never changed: its password, or its rights, may have been
changed since. A hash of v1 is bcrypt's, and is stored as Django's BCryptPasswordHasher
writes one; at the first login Django replaces it by its own first hasher's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.hashers import make_password
from django.core.exceptions import FieldDoesNotExist
from django.db import DEFAULT_DB_ALIAS, connections, models
from django.utils import timezone
from psycopg import sql

from ..errors import InvalidArgument
from .tables import INTEGERS, Outcome, Table, moment

#: Roles of v1, in lower case, that make a superuser and a member of staff; is_admin
#: makes a superuser too. Everybody else is an ordinary account.
ADMIN_ROLES = {"admin", "administrator", "superadmin", "super_admin", "superuser"}
STAFF_ROLES = {"staff", "moderator"}

#: The whole of a bcrypt hash, of any of its versions.
_BCRYPT = re.compile(r"\$2[abxy]\$\d\d\$[./A-Za-z0-9]{53}")
#: What Django's own validator lets no username hold. An address stays as it is: people
#: log in by it.
_NOT_IN_USERNAMES = re.compile(r"[^\w.@+-]+")

_ANOTHERS = "the id is another person's account, whose their documents become"

_COLUMNS = ("id", "name", "email", "password_hash", "role", "is_admin", "is_active")
#: Of another type they are not read: the text 'false' would be as good as true.
_FLAGS = {name: {"bool", *INTEGERS} for name in ("is_admin", "is_active")}


def check_accounts(table: Table) -> None:
    """Raise `InvalidArgument` where accounts cannot be made of that table's rows."""
    if not table.has("id", INTEGERS) or not (table.has("email") or table.has("name")):
        raise InvalidArgument(
            f"{table.name} has no integer id, or neither email nor name.", "Nothing was changed."
        )
    model: Any = get_user_model()
    if model._meta.db_table == table.name:
        raise InvalidArgument(
            f"{table.name} is this project's own table of accounts ({model._meta.label}).",
            "Nothing was changed. Leave --users out.",
        )
    filled = {model.USERNAME_FIELD, model.get_email_field_name(), "first_name", "last_name"}
    missing = [name for name in model.REQUIRED_FIELDS if name not in filled]
    if missing or not isinstance(model._meta.pk, models.IntegerField):
        raise InvalidArgument(
            f"{model._meta.label} "
            + (f"requires {', '.join(missing)}" if missing else "has no integer primary key")
            + ", which v1's table of people does not have.",
            "Nothing was changed. Leave --users out and bring the people over by yourself.",
        )


def bring_accounts(
    table: Table,
    outcome: Outcome,
    *,
    after: str | None,
    limit: int,
    dry_run: bool = False,
    using: str = DEFAULT_DB_ALIAS,
) -> tuple[int, str | None]:
    """Make accounts of the rows after that id, in the caller's transaction.

    Returns how many rows were read, and the last one's id. A dry run only counts.
    """
    rows = _read(table, after, limit, using)
    if not rows:
        return 0, None
    model: Any = get_user_model()
    manager = model._default_manager.using(using)
    email_field = model.get_email_field_name()
    there = manager.in_bulk([row["id"] for row in rows])
    addresses = {address for row in rows for address in _spellings(row["email"])}
    owners = (
        dict(manager.filter(**{f"{email_field}__in": addresses}).values_list(email_field, "pk"))
        if _field(model, email_field)
        else {}
    )
    new = []
    for row in rows:
        if (account := there.get(row["id"])) is not None:
            if _is_same(account, row):
                outcome.unchanged += 1
            else:
                outcome.note(outcome.skipped, _ANOTHERS, 1, [str(row["id"])])
        elif any(address in owners for address in _spellings(row["email"])):
            reason = "another account has this e-mail address already"
            outcome.note(outcome.skipped, reason, 1, [str(row["id"])])
        else:
            new.append(row)
    taken = _taken_usernames(model, (_username(row) for row in new), using)
    accounts = [_account(model, row, taken, outcome) for row in new]
    outcome.brought += len(accounts)
    if accounts and not dry_run:
        manager.bulk_create(accounts)
        _advance_sequence(model, using)
    return len(rows), str(rows[-1]["id"])


def _read(table: Table, after: str | None, limit: int, using: str) -> list[dict[str, Any]]:
    names = [name for name in _COLUMNS if table.has(name, _FLAGS.get(name))]
    with connections[using].cursor() as cursor:
        cursor.execute(
            sql.SQL(
                "SELECT {}, {} FROM {} AS t WHERE id > %s ORDER BY id FETCH FIRST (%s) ROWS ONLY"
            ).format(
                moment(table, ("created_at",)),
                sql.SQL(", ").join(map(sql.Identifier, names)),
                table.identifier,
            ),
            [-(1 << 63) if after is None else int(after), limit],
        )
        return [
            dict.fromkeys(_COLUMNS) | dict(zip(("created_at", *names), row, strict=True))
            for row in cursor.fetchall()
        ]


def _field(model: Any, name: str) -> models.Field[Any, Any] | None:
    try:
        found: models.Field[Any, Any] = model._meta.get_field(name)
    except FieldDoesNotExist:
        return None
    return found


def _spellings(email: str | None) -> set[str]:
    """The address, and as Django's managers write it."""
    return {email, BaseUserManager.normalize_email(email)} if email else set()


def _is_same(account: Any, row: dict[str, Any]) -> bool:
    """Whether the account is this person's, by the address or else by the name."""
    email = getattr(account, account.get_email_field_name(), None)
    if email or row["email"]:
        return (email or "").lower() == (row["email"] or "").lower()
    return bool(account.get_username() == _username(row))


def _username(row: dict[str, Any]) -> str:
    """What a person logs in by, as in v1: the e-mail address, or else the name."""
    name = _NOT_IN_USERNAMES.sub("-", row["name"] or "").strip("-")
    for text in (row["email"] or "", name):
        # As Django's own form reads what is typed in.
        username = AbstractBaseUser.normalize_username(text.strip())
        if 0 < len(username) <= 150:
            return username
    return f"user-{row['id']}"


def _taken_usernames(model: Any, wanted: Iterable[str], using: str) -> set[str]:
    """Of these usernames, those that accounts have."""
    name = model.USERNAME_FIELD
    manager = model._default_manager.using(using)
    return set(manager.filter(**{f"{name}__in": set(wanted)}).values_list(name, flat=True))


def _account(model: Any, row: dict[str, Any], taken: set[str], outcome: Outcome) -> Any:
    username = _username(row)
    if username in taken:
        username = f"{username[:120]}-{row['id']}"
        outcome.note(
            outcome.adjusted, "the username was taken: the id is added", 1, [str(row["id"])]
        )
    taken.add(username)
    password = row["password_hash"] or ""
    if _BCRYPT.fullmatch(password):
        password = f"bcrypt${password}"
    else:
        password = make_password(None)
        reason = "no bcrypt hash: they need a new password to log in"
        outcome.note(outcome.adjusted, reason, 1, [str(row["id"])])
    role = (row["role"] or "").strip().lower()
    is_admin = bool(row["is_admin"]) or role in ADMIN_ROLES
    first, _, last = (row["name"] or "").strip().partition(" ")
    values: dict[str, Any] = {
        "password": password,
        model.get_email_field_name(): row["email"] or "",
        "first_name": first,
        "last_name": last.strip(),
        "is_superuser": is_admin,
        "is_staff": is_admin or role in STAFF_ROLES,
        "is_active": row["is_active"] is None or bool(row["is_active"]),
        "date_joined": row["created_at"] or timezone.now(),
        model.USERNAME_FIELD: username,
    }
    account = model(pk=row["id"])
    for name, value in values.items():
        field = _field(model, name)
        if field is not None:
            most = getattr(field, "max_length", None)
            setattr(account, name, value[:most] if isinstance(value, str) and most else value)
    return account


def _advance_sequence(model: Any, using: str) -> None:
    """Let the next account's id be above all that are there."""
    table, column = model._meta.db_table, model._meta.pk.column
    with connections[using].cursor() as cursor:
        cursor.execute("SELECT pg_get_serial_sequence(%s, %s)", [f'"{table}"', column])
        (sequence,) = cursor.fetchone()
        if sequence is None:
            return
        cursor.execute(
            sql.SQL(
                "SELECT setval(%(sequence)s::regclass, greatest("
                "max({}), coalesce(pg_sequence_last_value(%(sequence)s::regclass), 1), 1)) FROM {}"
            ).format(sql.Identifier(column), sql.Identifier(table)),
            {"sequence": sequence},
        )
