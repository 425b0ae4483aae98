"""Typed settings under ``CARTRITA_SEARCH``, read lazily and checked at start.

Thresholds that SQL functions need as well (candidate pool, index budget, default
language) are not here but in the table ``search_settings``, so that a client
without Django sees the same.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings

from .errors import InvalidArgument


@dataclass(frozen=True)
class SearchSettings:
    """The keys of ``CARTRITA_SEARCH``, upper case there, with their defaults."""

    #: Dotted path of an `embedders.Embedder` class; None: text cannot be embedded.
    embedder: str | None = None
    #: Keyword arguments for that class; a key among them is never shown.
    embedder_options: dict[str, Any] = field(default_factory=dict)
    #: Role that may use the tables and functions; "" grants to nobody else.
    grant_role: str = ""


def search_settings() -> SearchSettings:
    """The present settings. Raises `InvalidArgument` naming the first wrong one."""
    loaded, problems = load(getattr(settings, "CARTRITA_SEARCH", {}))
    if problems:
        raise InvalidArgument(problems[0], "See the settings table in README.md.")
    return loaded


def load(raw: object) -> tuple[SearchSettings, list[str]]:
    """`raw` as settings, and a sentence for everything wrong with it."""
    if not isinstance(raw, dict):
        return SearchSettings(), [f"CARTRITA_SEARCH must be a dict, not {type(raw).__name__}."]
    names = {f.name.upper(): f.name for f in dataclasses.fields(SearchSettings)}
    problems = [
        f"CARTRITA_SEARCH has no key {key!r}; the keys are {', '.join(names)}."
        for key in raw
        if key not in names
    ]
    values = {names[key]: value for key, value in raw.items() if key in names}
    embedder = values.get("embedder")
    if embedder is not None and (not isinstance(embedder, str) or "." not in embedder):
        problems.append(
            f'CARTRITA_SEARCH["EMBEDDER"] must be the dotted path of a class, not {embedder!r}.'
        )
    options = values.get("embedder_options", {})
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        problems.append(
            # What it is instead is not shown: there may be a secret in it.
            'CARTRITA_SEARCH["EMBEDDER_OPTIONS"] must be a dict of keyword arguments by name.'
        )
    role = values.get("grant_role", "")
    if not isinstance(role, str):
        problems.append(f'CARTRITA_SEARCH["GRANT_ROLE"] must be a role\'s name, not {role!r}.')
    return (SearchSettings() if problems else SearchSettings(**values)), problems
