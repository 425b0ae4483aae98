"""Bulk actions on configurations: each asks first, and is in each row's history."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.auth import get_user_model
from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from ..models import RetrievalConfig, owner_name
from .base import selection
from .changes import FIELDS, differences, log_change

#: What a copy takes along; name and person stay the receiver's.
COPIED = (
    "vector_weight",
    "keyword_weight",
    "max_results",
    "similarity_threshold",
    "rerank_enabled",
)

MOST_NAMES = 1000


@dataclass(frozen=True, slots=True)
class Planned:
    """One row as it will be, and what that changes; ``added`` if it is new."""

    config: RetrievalConfig
    changed: list[str]
    added: bool = False

    def __str__(self) -> str:
        whose = owner_name(self.config) or "site default"
        name = f"{whose}, “{self.config.config_name}”"
        return f"{name}: {'new, ' if self.added else ''}{', '.join(self.changed)}"


class NamesForm(forms.Form):
    """Who gets a copy: user names, one a line."""

    names = forms.CharField(
        label="User names, one a line",
        widget=forms.Textarea(attrs={"rows": 6, "cols": 40}),
        max_length=100_000,
    )

    def clean_names(self) -> list[Any]:
        """The people, in the order written."""
        names = [line.strip() for line in self.cleaned_data["names"].splitlines()]
        names = list(dict.fromkeys(name for name in names if name))
        if len(names) > MOST_NAMES:
            raise forms.ValidationError(f"{len(names)} names; {MOST_NAMES} at a time.")
        user: Any = get_user_model()
        found: Any = user._default_manager.filter(**{f"{user.USERNAME_FIELD}__in": names})
        people: dict[str, Any] = {person.get_username(): person for person in found}
        unknown = [name for name in names if name not in people]
        if unknown:
            raise forms.ValidationError(f"There is nobody called {', '.join(unknown)}.")
        return [people[name] for name in names]


def activate(model_admin: Any, request: HttpRequest, queryset: Any) -> HttpResponse | None:
    """Make each the active one of its person, and the former inactive."""
    people = [config.user_id for config in queryset]
    if len(set(people)) < len(people):
        model_admin.message_user(
            request,
            "Nothing was changed: one configuration of a person (or of the site) is active, and "
            "two of one were selected. Select one of each.",
            messages.ERROR,
        )
        return None
    selected = {config.pk for config in queryset}

    def plan() -> list[Planned]:
        same = RetrievalConfig.objects.filter(user_id__in=people)
        if None in people:
            same |= RetrievalConfig.objects.filter(user=None)
        rows = list(same.select_for_update(of=("self",)).select_related("user"))
        # The former goes first: the index that holds them to one looks at each statement.
        former = [row for row in rows if row.is_active and row.pk not in selected]
        wanted = [row for row in rows if not row.is_active and row.pk in selected]
        replaced = {row.user_id for row in wanted}
        return [
            *(_edited(row, is_active=False) for row in former if row.user_id in replaced),
            *(_edited(row, is_active=True) for row in wanted),
        ]

    return _ask_and_do(model_admin, request, queryset, "Activate", plan)


def reset(
    model_admin: Any, request: HttpRequest, queryset: Any, default: RetrievalConfig
) -> HttpResponse | None:
    """Give each the weights and options that the site's default has now."""
    values = {name: getattr(default, name) for name in COPIED}

    def plan() -> list[Planned]:
        rows = RetrievalConfig.objects.filter(pk__in=queryset).order_by("pk")
        rows = rows.select_for_update(of=("self",)).select_related("user")
        planned = [_edited(row, **values) for row in rows]
        return [each for each in planned if each.changed]

    note = (
        "They take the values that the site's default has now. To let somebody follow the "
        "site's default for good, make their configuration inactive instead."
    )
    return _ask_and_do(
        model_admin, request, queryset, "Reset to the site's default", plan, note=note
    )


def copy_to_users(model_admin: Any, request: HttpRequest, queryset: Any) -> HttpResponse | None:
    """Give other people the weights and options of one configuration."""
    if len(queryset) != 1:
        model_admin.message_user(
            request, "Nothing was changed: select the one to copy.", messages.ERROR
        )
        return None
    values = {name: getattr(queryset[0], name) for name in COPIED}
    form = NamesForm(request.POST if "names" in request.POST else None)
    people: list[Any] = form.cleaned_data["names"] if form.is_valid() else []

    def plan() -> list[Planned]:
        active = RetrievalConfig.objects.filter(user__in=people, is_active=True)
        theirs = {row.user_id: row for row in active.select_for_update(of=("self",))}
        planned = [
            _edited(theirs[person.pk], **values)
            if person.pk in theirs
            else _new(person, queryset[0].config_name, values)
            for person in people
        ]
        return [each for each in planned if each.changed]

    note = "Who has an active configuration keeps it, with these values; others get a new one."
    return _ask_and_do(
        model_admin, request, queryset, "Copy to other people", plan, note=note, form=form
    )


def _edited(row: RetrievalConfig, **values: Any) -> Planned:
    before = copy.copy(row)
    for name, value in values.items():
        setattr(row, name, value)
    return Planned(row, differences(before, row))


def _new(person: Any, name: str, values: dict[str, Any]) -> Planned:
    row = RetrievalConfig(user=person, config_name=name, **values)
    return Planned(row, [f"weights {row.vector_weight:g} / {row.keyword_weight:g}"], added=True)


def _ask_and_do(
    model_admin: Any,
    request: HttpRequest,
    queryset: Any,
    title: str,
    plan: Callable[[], list[Planned]],
    *,
    note: str = "",
    form: forms.Form | None = None,
) -> HttpResponse | None:
    """Show what would change, and on the second time do it, all or nothing."""
    try:
        with transaction.atomic():
            planned = plan()
            if (form is None or form.is_valid()) and not planned:
                model_admin.message_user(request, "There is nothing to change.", messages.INFO)
                return None
            if not planned or request.POST.get("confirmed") != "yes":
                context = model_admin.admin_site.each_context(request) | {
                    "title": f"{title}: are you sure?",
                    "opts": model_admin.opts,
                    "media": model_admin.media,
                    "action_title": title,
                    "note": note,
                    "form": form,
                    "planned": planned,
                    "action": request.POST["action"],
                }
                context |= selection(request, queryset)
                page = "admin/cartrita_search/retrievalconfig/confirm.html"
                return TemplateResponse(request, page, context)
            for each in planned:
                each.config.save(update_fields=None if each.added else [*FIELDS[1:], "updated_at"])
                log_change(request, each.config, each.changed, added=each.added)
    except IntegrityError:
        model_admin.message_user(
            request,
            "Nothing was changed: somebody else has just made another configuration active. "
            "Look at the list, and try again.",
            messages.ERROR,
        )
        return None
    model_admin.message_user(request, f"Changed: {len(planned)}.", messages.SUCCESS)
    return None
