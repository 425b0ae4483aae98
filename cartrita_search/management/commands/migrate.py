"""``manage.py migrate``: Django's own, which does not hold a wrong database against going back."""

from __future__ import annotations

from typing import Any

from django.core.management.commands import migrate


class Command(migrate.Command):
    """Django's ``migrate``, with what the database lacks told by ``pre_migrate`` alone.

    That is in one line, and only where it matters: the system check of the same
    would refuse the way back too, which needs no pgvector of any version.
    """

    def get_check_kwargs(self, options: dict[str, Any]) -> dict[Any, Any]:
        return super().get_check_kwargs(options) | {"databases": []}
