"""Which database a query goes to."""

from __future__ import annotations

from typing import Any

from django.db.models import Model

from cartrita_search import replicas
from cartrita_search.conf import search_settings


class SearchRouter:
    """Searches to a replica that is fresh enough; everything else to the primary.

    `retrieval` marks a search by the hint ``search``. Reads of other code stay on the
    primary: it may be about to write what it has read.
    """

    def db_for_read(self, model: type[Model], **hints: Any) -> str | None:
        return replicas.choose() if hints.get("search") else None

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        """A replica's tables come with everything else from its primary."""
        return False if db in search_settings().replicas else None
