"""Start-up: register system checks, sources and signals; guard and complete ``migrate``."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.contrib.auth.signals import user_logged_in
from django.core.management.base import CommandError
from django.db import connections
from django.db.models.signals import post_migrate, post_save, pre_migrate
from django.utils.module_loading import autodiscover_modules


class CartritaSearchConfig(AppConfig):
    """Hybrid search in PostgreSQL."""

    name = "cartrita_search"
    verbose_name = "Cartrita search"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import checks, sessions  # noqa: F401 - checks register themselves on import

        autodiscover_modules("search_sources")
        pre_migrate.connect(_refuse_to_begin, sender=self)
        post_migrate.connect(_grant, sender=self)
        user_logged_in.connect(sessions.remember_client)
        post_save.connect(sessions.forget_ended, sender=settings.AUTH_USER_MODEL)


def _refuse_to_begin(using: str, plan: Any = (), **kwargs: Any) -> None:
    """Refuse to begin a migration that could not end: nothing is touched yet here."""
    from .ops.migration_guard import unmet_requirement

    if (missing := unmet_requirement(connections[using], plan)) is not None:
        raise CommandError(f"Nothing was changed. {missing}")


def _grant(using: str, **kwargs: Any) -> None:
    """Grant the objects to the role that the settings name, if they name one."""
    from .conf import search_settings
    from .db import grant_to_role
    from .errors import SearchError

    try:
        if role := search_settings().grant_role:
            grant_to_role(connections[using], role, site=search_settings().grant_site)
    except SearchError as error:
        raise CommandError(str(error)) from error
