"""What the pages share: types, tables of millions of rows, pages nobody edits."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from django import forms
from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from ..models import owner_name

if TYPE_CHECKING:
    AnyModelAdmin: TypeAlias = admin.ModelAdmin[Any]
    ModelForm: TypeAlias = forms.ModelForm[Any]
    StackedInline: TypeAlias = admin.StackedInline[Any, Any]
    AnyPaginator: TypeAlias = Paginator[Any]
else:  # the classes themselves take no type argument
    AnyModelAdmin, StackedInline = admin.ModelAdmin, admin.StackedInline
    ModelForm, AnyPaginator = forms.ModelForm, Paginator


class ModelAdmin(AnyModelAdmin):
    """What every page here is: Django's, with the few styles of this package."""

    class Media:
        css = {"all": ("cartrita_search/admin.css",)}  # noqa: RUF012 - as Django declares it


class CappedPaginator(AnyPaginator):
    """Counts no further than a person leafs: counting a million rows takes a second."""

    MAX_ROWS = 10_000

    @cached_property
    def count(self) -> int:
        rows = cast("QuerySet[Any]", self.object_list)
        return rows[: self.MAX_ROWS].count()


class FilledInByDatabase(ModelAdmin):
    """The last fieldset shows what has no value before the row is stored."""

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        fieldsets = super().get_fieldsets(request, obj)
        return fieldsets if obj else fieldsets[:-1]


class LargeTable(ModelAdmin):
    """A list that opens at once, however many rows the table has.

    No count of everything, no sorting by a column without an index.
    """

    paginator = CappedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    sortable_by = ()
    list_per_page = 50


def selection(request: HttpRequest, queryset: QuerySet[Any]) -> dict[str, Any]:
    """For the page that asks before an action: what was selected, to be sent once more.

    Of all that match, one row and the wish: a form of more than a thousand fields is refused.
    """
    across = request.POST.get("select_across", "0") not in {"", "0"}
    keys = [row.pk for row in queryset]
    return {
        "checkbox": ACTION_CHECKBOX_NAME,
        "selected": keys[:1] if across else keys,
        "across": across,
    }


class Owned(ModelAdmin):
    """Rows with a column ``user``: a person, or nobody in particular."""

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("user")

    def get_readonly_fields(
        self, request: HttpRequest, obj: Any = None
    ) -> list[str] | tuple[str, ...]:
        fields = super().get_readonly_fields(request, obj)
        # A person whom Django does not know is no choice that a form can offer;
        # the empty choice, saved, would make a private row everybody's.
        unknown = obj is not None and obj.user_id is not None and obj.user is None
        return [*fields, "user"] if unknown else fields

    @admin.display(description="user")
    def owner(self, row: Model) -> str | None:
        return owner_name(row)


class ReadOnly(ModelAdmin):
    """Rows that only the software writes: staff look at them."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # Deleting a person asks here too, about the rows that go with them; a
        # plain no would keep everybody who ever searched undeletable.
        match = request.resolver_match
        own_page = f"{self.opts.app_label}_{self.opts.model_name}_"
        if match is None or (match.url_name or "").startswith(own_page):
            return False
        return super().has_delete_permission(request, obj)
