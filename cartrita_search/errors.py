"""Every error this package raises on purpose, and what to do about each.

SQL functions raise their own SQLSTATE, of class ``SE`` (the standard leaves
classes beginning with I-Z to implementations). `from_database` turns such a
database error into the Python class of the same code, so that callers branch
on a class or on ``code`` and never on the wording.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from django.db import DatabaseError, DataError


class SearchError(Exception):
    """A refusal: one sentence of what is wrong, and a hint of what to do next.

    Nothing was changed when one of these is raised.
    """

    code: ClassVar[str] = "SE000"
    #: What a command that ends by it exits with.
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class DimensionMismatch(SearchError):
    """The vector's dimension is not the model's."""

    code = "SE001"


class ZeroVector(SearchError):
    """All components are zero, so the vector has no direction and no cosine."""

    code = "SE002"


class UnknownModel(SearchError):
    """No embedding model of that name, or no default model yet."""

    code = "SE003"


class InvalidWeights(SearchError):
    """A weight outside [0, 1], or two that do not sum to 1 within 1e-6."""

    code = "SE004"


class InvalidMatchCount(SearchError):
    """A result count below 1 or above 10,000."""

    code = "SE005"


class NothingToSearchFor(SearchError):
    """Neither query text nor a query vector was given."""

    code = "SE006"


class InvalidThreshold(SearchError):
    """A similarity threshold outside [-1, 1]."""

    code = "SE007"


class InvalidArgument(SearchError):
    """Any other argument that cannot be used: fusion, language, filter, key."""

    code = "SE008"


class IndexPlanRefused(SearchError):
    """The index asked for cannot be built: method, storage or dimension."""

    code = "SE009"


class RebuildInProgress(SearchError):
    """Another session holds the rebuild lock."""

    code = "SE010"


class RebuildFailed(SearchError):
    """A vector index could not be built or put in place; the former one goes on serving."""

    code = "SE042"


class NotMigrated(SearchError):
    """A table or function of this package is not in the database."""

    code = "SE011"


class EmbedderUnavailable(SearchError):
    """No embedder is configured, or it cannot be loaded."""

    code = "SE020"


class EmbeddingRefused(SearchError):
    """The provider will not embed this very text, or answered with something unusable."""

    code = "SE022"


class EmbedderOverloaded(SearchError):
    """The provider is rate-limiting, failing or silent; the same call may work later."""

    code = "SE023"


class UnreadableInput(SearchError):
    """A file or one of its lines cannot be read; the message names the line."""

    code = "SE024"


class PackageMissing(SearchError):
    """An optional package is not installed; the hint says which command installs it."""

    code = "SE025"


class RerankerUnavailable(SearchError):
    """The configured reranker cannot be loaded."""

    code = "SE026"


class ScratchDatabaseRefused(SearchError):
    """An evaluation's own database cannot be made."""

    code = "SE027"


class LockHeld(SearchError):
    """Another process holds the lock of this work, and kept it until the deadline."""

    code = "SE028"
    #: sysexits.h: EX_TEMPFAIL, the same command may succeed later.
    exit_code = 75


class PoolerRefused(SearchError):
    """The connection goes through a pooler, which cannot hold what a session holds."""

    code = "SE029"


class DatabaseUnreachable(SearchError):
    """The database server does not answer, or not to this role."""

    code = "SE031"


class PrivilegeMissing(SearchError):
    """The database's role may not see or do what this work needs; the hint has the grant."""

    code = "SE030"
    exit_code = 5


class RedisUnavailable(SearchError):
    """Redis does not answer, or none is configured; the same call may work later."""

    code = "SE040"
    exit_code = 75


class MigrationDrift(SearchError):
    """What the database records of its migrations is not what this release has."""

    code = "SE041"


class BackupFailed(SearchError):
    """A backup could not be made; the database and every earlier backup are as they were."""

    code = "SE050"


class RestoreRefused(SearchError):
    """This backup cannot be restored here; nothing was touched."""

    code = "SE051"


class RestoreFailed(SearchError):
    """A restore ended half-way; the database is as it was, and nothing is left over."""

    code = "SE052"


class EmbeddedServerError(SearchError):
    """The embedded PostgreSQL or Redis cannot be started or reached."""

    code = "SE021"


#: Every class that a SQL function raises, by its SQLSTATE.
BY_CODE: dict[str, type[SearchError]] = {
    kind.code: kind
    for kind in (
        DimensionMismatch,
        ZeroVector,
        UnknownModel,
        InvalidWeights,
        InvalidMatchCount,
        NothingToSearchFor,
        InvalidThreshold,
        InvalidArgument,
        IndexPlanRefused,
        RebuildInProgress,
    )
}


#: undefined_table, undefined_function, undefined_object (type vector).
_UNDEFINED = {"42P01", "42883", "42704"}


def from_database(error: DatabaseError) -> SearchError | None:
    """The `SearchError` that a SQL function raised, or None for any other error.

    Django wraps psycopg's exception; the SQLSTATE and the hint are on the
    original, which is the cause.
    """
    original = error.__cause__
    diagnostic = getattr(original, "diag", None)
    code = getattr(original, "sqlstate", None)
    message = getattr(diagnostic, "message_primary", None) or str(error)
    if code in _UNDEFINED:
        return NotMigrated(
            f"The database lacks something of this package: {message}.", "Run: manage.py migrate"
        )
    kind = BY_CODE.get(code or "")
    return kind(message, getattr(diagnostic, "message_hint", None) or "") if kind else None


@contextmanager
def search_errors() -> Iterator[None]:
    """Turn what the SQL functions raise into the `SearchError` of the same code."""
    try:
        yield
    except DatabaseError as error:
        known = from_database(error)
        if known is not None:
            raise known from error
        if isinstance(error, DataError):
            diagnostic = getattr(error.__cause__, "diag", None)
            said = getattr(diagnostic, "message_primary", None) or error  # without its CONTEXT
            raise InvalidArgument(
                f"PostgreSQL cannot take an argument: {said}.", "Nothing was changed."
            ) from error
        raise
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"PostgreSQL cannot take an argument: {error}.", "Nothing was changed."
        ) from error
