"""The record of what operators' commands did: rows of operator_actions."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Mapping
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections

from ..models import OperatorAction


def operator() -> str:
    """Who runs this process, as ``user@host``."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = "?"
    return f"{user}@{socket.gethostname()}"


def record_action(
    action: str,
    subject: str = "",
    *,
    done: bool = True,
    reason: str = "",
    details: Mapping[str, Any] | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> None:
    """Write down that ``action`` was done to ``subject``, or failed.

    Actions so far: terminate, cancel, backup, restore, rebuild, vacuum, import_v1,
    repair_checksum, force_migration, revoke. ``details`` is any JSON object, without secrets.
    """
    connection = connections[using]
    if not connection.in_atomic_block and not connection.is_usable():
        # The work was done on another one, and took its time: the server, or what is in
        # between, ends idle connections.
        connection.close()
    OperatorAction.objects.using(using).create(
        action=action,
        subject=subject,
        outcome="done" if done else "failed",
        reason=reason,
        operator=operator(),
        details=dict(details or {}),
    )
