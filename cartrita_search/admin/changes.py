"""What was changed about a configuration, from which value to which, and by whom."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.contrib.admin.models import ADDITION, CHANGE, LogEntry
from django.contrib.admin.utils import label_for_field
from django.contrib.contenttypes.models import ContentType
from django.http import HttpRequest

from ..models import RetrievalConfig, owner_name

#: What staff edit, in the order of the page.
FIELDS = (
    "user",
    "config_name",
    "is_active",
    "vector_weight",
    "keyword_weight",
    "max_results",
    "similarity_threshold",
    "rerank_enabled",
)


def differences(
    before: RetrievalConfig, after: RetrievalConfig, fields: Iterable[str] = FIELDS
) -> list[str]:
    """Each changed field with its old and its new value: "vector weight 0.7 → 0.25"."""
    return [
        f"{label_for_field(name, RetrievalConfig)} {old} → {new}"
        for name in fields
        if (old := _shown(before, name)) != (new := _shown(after, name))
    ]


def before_form(form: Any) -> RetrievalConfig:
    """The row as a form found it."""
    initial = {name: form.initial[name] for name in FIELDS if name in form.initial}
    if "user" in initial:
        initial["user_id"] = initial.pop("user")
    return RetrievalConfig(**initial)


def log_change(
    request: HttpRequest, config: RetrievalConfig, changed: list[str], *, added: bool = False
) -> None:
    """A line in the history of the configuration, in the form that Django's own have."""
    message: list[dict[str, Any]] = [{"added": {}}] if added else []
    if changed:
        message.append({"changed": {"fields": changed}})
    LogEntry.objects.log_actions(
        str(request.user.pk), [config], ADDITION if added else CHANGE, message, single_object=True
    )


def last_changes(configs: Iterable[RetrievalConfig]) -> dict[int, tuple[str, datetime]]:
    """Who changed each in the admin last, and when: one query for a page of them."""
    entries = (
        LogEntry.objects.filter(
            content_type=ContentType.objects.get_for_model(RetrievalConfig),
            object_id__in=[str(config.pk) for config in configs],
            action_flag__in=(ADDITION, CHANGE),
        )
        .order_by("object_id", "-action_time")
        .distinct("object_id")
        .select_related("user")
    )
    return {int(str(entry.object_id)): (str(entry.user), entry.action_time) for entry in entries}


def _shown(config: RetrievalConfig, name: str) -> str:
    if name == "user":
        return owner_name(config) or "site default"
    value = getattr(config, name)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.9g}" if isinstance(value, float) else str(value)
