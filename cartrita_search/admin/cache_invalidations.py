"""What was thrown out of the cache, and why; and a page to do so."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from ..cache import NAMESPACES, invalidate
from ..errors import SearchError
from ..models import CacheInvalidation
from .base import LargeTable, ModelForm, ReadOnly


class InvalidationForm(ModelForm):
    """What to invalidate, and why."""

    TARGETS = ("namespace", "user", "source")

    namespace = forms.ChoiceField(
        choices=[
            ("", "---------"),
            *((name, f"{name}: {concerned}") for name, concerned in NAMESPACES.items()),
        ],
        required=False,
    )
    user = forms.IntegerField(
        label="Person", help_text="A user's id: answers for that person.", required=False
    )
    source = forms.CharField(
        help_text="A source_table: answers restricted to it, and to none.", required=False
    )
    invalidation_reason = forms.CharField(label="Reason")

    class Meta:
        model = CacheInvalidation
        fields = ("invalidation_reason",)

    def clean(self) -> dict[str, Any]:
        """Exactly one of the targets."""
        cleaned = super().clean() or self.cleaned_data
        if sum(cleaned.get(name) not in {None, ""} for name in self.TARGETS) != 1:
            raise forms.ValidationError("One of namespace, person and source is to be given.")
        return cleaned


@admin.register(CacheInvalidation)
class CacheInvalidationAdmin(ReadOnly, LargeTable):
    """The latest first. An index on the time serves the filter by date."""

    list_display = (
        "created_at",
        "cache_namespace",
        "cache_key",
        "invalidation_reason",
        "invalidated_by",
    )
    list_filter = ("created_at",)
    actions = ("invalidate_again",)

    @admin.action(description="Invalidate the same again", permissions=["add"])
    def invalidate_again(
        self, request: HttpRequest, queryset: QuerySet[CacheInvalidation]
    ) -> None:
        """What the selected rows name, each once."""
        named = dict.fromkeys(queryset.order_by("id").values_list("cache_key", "cache_namespace"))
        for key, namespace in named:
            try:
                invalidate(
                    **_target(key, namespace or ""),
                    reason="again, by hand",
                    by=request.user.get_username(),
                )
            except SearchError as error:
                self.message_user(request, str(error), messages.ERROR)
            else:
                self.message_user(request, f"Invalidated: {key or namespace}.")

    def has_add_permission(self, request: HttpRequest) -> bool:
        # Adding a row is invalidating; as for any model, it takes the permission to add.
        return super(ReadOnly, self).has_add_permission(request)

    def get_form(
        self, request: HttpRequest, obj: Any | None = None, change: bool = False, **kwargs: Any
    ) -> type[ModelForm]:
        """The page of a row shows the row; the page to add one asks what to invalidate."""
        if obj is None:
            kwargs["form"] = InvalidationForm
        return super().get_form(request, obj, change, **kwargs)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """As `get_form`."""
        if obj is None:
            return [*InvalidationForm.TARGETS, "invalidation_reason"]
        return super().get_fields(request, obj)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: Any) -> None:
        """Invalidate; that leaves the row."""
        target = {name: form.cleaned_data[name] for name in InvalidationForm.TARGETS}
        row = invalidate(
            **{name: value for name, value in target.items() if value not in {None, ""}},
            reason=obj.invalidation_reason,
            by=request.user.get_username(),
        )
        obj.pk, obj.cache_namespace = row.pk, row.cache_namespace


def _target(key: str | None, namespace: str) -> dict[str, Any]:
    """The argument of `invalidate` that left such a row."""
    if key is not None:
        return {"key": key}
    kind, _, name = namespace.partition(":")
    if kind == "user" and name.removeprefix("-").isdecimal():
        return {"user": int(name)}
    return {"source": name} if kind == "source" else {"namespace": namespace}
