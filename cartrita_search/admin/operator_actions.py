"""What operators' commands did, the latest first."""

from __future__ import annotations

from django.contrib import admin

from ..models import OperatorAction
from .base import LargeTable, ReadOnly


@admin.register(OperatorAction)
class OperatorActionAdmin(ReadOnly, LargeTable):
    """Nobody edits this record."""

    list_display = ("occurred_at", "action", "subject", "outcome", "role", "operator", "reason")
    list_filter = ("action", "outcome")
