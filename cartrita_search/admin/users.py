"""Each person's search weights on the page of the person.

A project with a user model of its own adds `RetrievalConfigInline` to its page's
``inlines`` itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from django.contrib import admin
from django.contrib.admin.widgets import AdminTextInputWidget
from django.contrib.auth import get_user_model
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import models
from django.forms import BaseInlineFormSet
from django.http import HttpRequest

from ..models import RetrievalConfig
from .base import StackedInline
from .changes import FIELDS, before_form, differences, log_change
from .retrieval_configs import OneActive, RetrievalConfigForm

if TYPE_CHECKING:
    InlineFormSet: TypeAlias = BaseInlineFormSet[RetrievalConfig, User, Any]
    Base: TypeAlias = UserAdmin[User]
else:  # the classes themselves take no type argument
    InlineFormSet, Base = BaseInlineFormSet, UserAdmin


class RetrievalConfigFormSet(InlineFormSet):
    """Each form looks for an active one in the database; this, among those of the page."""

    def clean(self) -> None:
        super().clean()
        kept = [form for form in self.forms if form not in self.deleted_forms]
        filled_in = [form for form in kept if form.instance.pk or form.has_changed()]
        if sum(form.cleaned_data.get("is_active", False) for form in filled_in) > 1:
            raise ValidationError(
                "One configuration of a person is active: make the others inactive."
            )


class RetrievalConfigInline(StackedInline):
    """The person's configurations; an empty one to fill in where there is none."""

    model = RetrievalConfig
    form = RetrievalConfigForm
    formset = RetrievalConfigFormSet
    fk_name = "user"
    fields = tuple(name for name in FIELDS if name != "user")
    show_change_link = True
    formfield_overrides = {  # noqa: RUF012 - as Django declares it
        models.FloatField: {"min_value": 0, "max_value": 1},
        models.TextField: {"widget": AdminTextInputWidget},
    }

    class Media:
        css = {"all": ("cartrita_search/admin.css",)}  # noqa: RUF012
        js = ("cartrita_search/weights.js",)

    def get_extra(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> int:
        return 0 if obj and obj.retrieval_configs.exists() else 1


class WithRetrievalConfigs(OneActive, Base):
    """Django's page of a person, and below it what their searches weigh."""

    def get_inlines(self, request: HttpRequest, obj: Any) -> Any:
        # A person is made by name and password first.
        inlines = super().get_inlines(request, obj)
        return [*inlines, RetrievalConfigInline] if obj else inlines

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        super().save_formset(request, form, formset, change)
        if formset.model is RetrievalConfig:
            # Into the history of the configuration too, where staff look for it.
            for each in formset.initial_forms:
                if each.has_changed() and each not in formset.deleted_forms:
                    changed = differences(before_form(each), each.instance, each.changed_data)
                    log_change(request, each.instance, changed)
            for config in formset.new_objects:
                log_change(request, config, [], added=True)


def extend(site: admin.AdminSite) -> None:
    """Give the page of people on that site the inline, whatever else it has."""
    if site.is_registered(User):
        theirs = type(site.get_model_admin(User))
        site.unregister(User)
        site.register(User, type(theirs.__name__, (WithRetrievalConfigs, theirs), {}))


if get_user_model() is User:
    extend(admin.site)
