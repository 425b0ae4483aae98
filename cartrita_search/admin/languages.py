"""A select of the database's text search configurations, for the pages that name one."""

from __future__ import annotations

from typing import Any

from django import forms
from django.db.models import Field
from django.http import HttpRequest

from ..models import text_search_languages, validate_language
from .base import ModelAdmin


class LanguageSelect(ModelAdmin):
    """Offers what there is, for every field that `validate_language` guards."""

    def formfield_for_dbfield(
        self, db_field: Field[Any, Any], request: HttpRequest, **kwargs: Any
    ) -> Any:
        if validate_language in db_field.validators:
            # A stored name that is no more is not silently replaced by the first.
            choices = [("", "---------"), *((name, name) for name in text_search_languages())]
            kwargs["widget"] = forms.Select(choices=choices)
        return super().formfield_for_dbfield(db_field, request, **kwargs)
