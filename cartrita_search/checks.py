"""System checks, with stable ids.

=====  ================================================================
E001   CARTRITA_SEARCH holds a wrong key or value
E002   the database does not meet the requirements (``--database``)
W001   pgvector is older than the version that fixed graph repair
E003   a search database is not PostgreSQL
E004   a registered source's model has no table (``--database``)
W002   an upgrade of pgvector is pending (D003 of search_doctor; ``--database``)
W003   migrations are not applied (D004; ``--database``)
W004   an index is invalid (D006; ``--database``)
W005   an index is left over from a rebuild (D007; ``--database``)
W006   a configuration of weights is invalid (D014; ``--database``)
W007   sessions can be lost (D020; ``--database``)
=====  ================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.checks import Warning as CheckWarning
from django.db import connections, router

from . import conf, db, sources
from .ops import doctor


@register("cartrita_search")
def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E001: every key and value of CARTRITA_SEARCH is one we know and can use."""
    _, problems = conf.load(getattr(settings, "CARTRITA_SEARCH", {}))
    return [
        Error(problem, hint="See the settings table in README.md.", id="cartrita_search.E001")
        for problem in problems
    ]


@register(Tags.database)
def check_database(
    app_configs: Sequence[AppConfig] | None,
    databases: Sequence[str] | None = None,
    **kwargs: Any,
) -> list[CheckMessage]:
    """E002, E003, W001: the server can hold this package's tables and indexes.

    Whether this role may create them is asked by ``migrate``: the site's role need not.
    """
    found: list[CheckMessage] = []
    for alias in databases or ():
        connection = connections[alias]
        if connection.vendor != "postgresql":
            found.append(
                Error(
                    f"Database '{alias}' is {connection.display_name}, not PostgreSQL.",
                    hint="Cartrita search runs on PostgreSQL 15 or newer only.",
                    id="cartrita_search.E003",
                )
            )
            continue
        missing = db.missing_requirement(connection, to_migrate=False)
        if missing is not None:
            found.append(Error(missing.problem, hint=missing.remedy, id="cartrita_search.E002"))
            continue
        version = db.pgvector_version(connection)
        if version is not None and version < db.ADVISED_PGVECTOR:
            found.append(
                CheckWarning(
                    f"pgvector {'.'.join(map(str, version))} may corrupt an HNSW index when "
                    "vacuum and inserts meet.",
                    hint="Install 0.8.4 or newer, then run: ALTER EXTENSION vector UPDATE;",
                    id="cartrita_search.W001",
                )
            )
    return found


@register(Tags.database)
def check_sources(
    app_configs: Sequence[AppConfig] | None,
    databases: Sequence[str] | None = None,
    **kwargs: Any,
) -> list[CheckMessage]:
    """E004: the rows that ``sync_documents`` is to read are somewhere."""
    return [
        Error(
            f"The source '{source.source_table}' has no table "
            f"'{source.model._meta.db_table}' in database '{alias}'.",
            hint="Run: manage.py migrate. Or take its register_source() away.",
            id="cartrita_search.E004",
        )
        for alias in databases or ()
        for source in sources.sources_without_table(connections[alias])
        if router.allow_migrate_model(alias, source.model)
    ]


@register(Tags.database)
def check_health(
    app_configs: Sequence[AppConfig] | None,
    databases: Sequence[str] | None = None,
    **kwargs: Any,
) -> list[CheckMessage]:
    """W002 to W007: what ``search_doctor`` finds, as far as it is cheap to look."""
    cheap = {rule.id: rule.check for rule in doctor.RULES.values() if rule.check}
    found: list[CheckMessage] = []
    for alias in databases or ():
        if connections[alias].vendor != "postgresql":  # E003
            continue
        found += [
            CheckWarning(
                f"{finding.evidence} ({finding.id})",
                hint=finding.remedy,
                id=f"cartrita_search.{cheap[finding.id]}",
            )
            for finding in doctor.examine(using=alias, only=cheap).findings
        ]
    return found
