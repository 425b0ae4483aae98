"""Which v1 tables a database holds, with which columns, and what is made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections
from psycopg import sql

from ..errors import InvalidArgument, PrivilegeMissing

#: What is kept of a row that was skipped, for people to find it: so many keys a reason.
EXAMPLES = 5

INTEGERS = {"int2", "int4", "int8"}
KEYS = {*INTEGERS, "uuid", "text", "varchar", "bpchar"}
VECTORS = {"vector", "halfvec"}
TEXTS = {"text", "varchar", "bpchar"}
JSON = {"json", "jsonb"}
TIMES = {"timestamptz", "timestamp", "date"}


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its type's name, and how that is written with its modifier."""

    name: str
    kind: str
    type: str
    #: Dimensions of a vector's column; None: each row has its own.
    dimensions: int | None


@dataclass(frozen=True, slots=True)
class Table:
    """A table or view that is there, and may be read."""

    schema: str
    name: str
    columns: Mapping[str, Column]

    @property
    def identifier(self) -> sql.Identifier:
        """The table's name, for a statement."""
        return sql.Identifier(self.schema, self.name)

    def has(self, name: str | None, kinds: Iterable[str] | None = None) -> bool:
        """Whether it has that column, of one of these kinds."""
        column = self.columns.get(name or "")
        return column is not None and (kinds is None or column.kind in kinds)


@dataclass(slots=True)
class Outcome:
    """What became of one table's rows: each one read is in one of the first four."""

    table: str
    model: str | None = None
    brought: int = 0
    updated: int = 0
    unchanged: int = 0
    #: Rows that do not come, and vectors left out of rows that do, by reason.
    skipped: dict[str, int] = field(default_factory=dict)
    vectors_left_out: dict[str, int] = field(default_factory=dict)
    #: What was made to fit, by what was done.
    adjusted: dict[str, int] = field(default_factory=dict)
    #: The first keys of each reason.
    examples: dict[str, list[str]] = field(default_factory=dict)
    #: The last key of a run before, which was interrupted and is gone on with.
    resumed_after: str | None = None

    @property
    def read(self) -> int:
        """All rows that this run read."""
        return self.brought + self.updated + self.unchanged + sum(self.skipped.values())

    def note(self, counts: dict[str, int], reason: str, count: int, keys: Iterable[str]) -> None:
        """Count rows of one reason in one of the dictionaries."""
        if count:
            counts[reason] = counts.get(reason, 0) + count
            kept = self.examples.setdefault(reason, [])
            kept.extend(list(keys)[: EXAMPLES - len(kept)])


# --- Maps: which column is what -----------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TableMap:
    """What each column of a table with texts or vectors is; columns may be missing."""

    table: str
    key: str = "id"
    title: str | None = "title"
    #: Several are joined, a blank line in between.
    content: tuple[str, ...] = ("content",)
    embedding: str | None = "embedding"
    #: None: every row is shared with everybody.
    owner: str | None = "user_id"
    tags: str | None = "tags"
    metadata: str | None = "metadata"
    created_at: tuple[str, ...] = ("created_at",)
    #: Columns that become entries of the metadata.
    keep: tuple[str, ...] = ()
    #: The table whose row this one is a part of, and the column that names it: title,
    #: metadata, and an owner where the part has none, are the whole's.
    whole: tuple[str, str] | None = None
    #: The table of its parts, and their column: a row with parts comes by them.
    parts: tuple[str, str] | None = None
    #: Asked for by the operator, so that a column missing is a mistake.
    given: bool = False


KNOWN = (
    TableMap(
        table="knowledge_entries",
        keep=("category", "content_type", "source_url", "confidence_score"),
    ),
    TableMap(
        table="knowledge_documents",
        keep=("file_path", "file_type", "processing_status"),
        parts=("knowledge_chunks", "document_id"),
    ),
    TableMap(
        table="knowledge_chunks",
        content=("chunk_text",),
        keep=("document_id", "chunk_index"),
        whole=("knowledge_documents", "document_id"),
    ),
    TableMap(
        table="search_index",
        keep=("content_type", "content_id", "url"),
        created_at=("created_at", "last_indexed_at"),
    ),
    TableMap(
        table="mcp_tasks",
        title="task_type",
        content=("parameters", "result"),
        keep=("task_type", "status", "error_message"),
    ),
)

#: Tables of v1, and of its SQL runner, that do not come, and why.
NOT_BROUGHT = {
    "knowledge_queries": "a log of queries, no corpus",
    "search_performance_metrics_v1": "v1's own record of searches, kept as it is",
    "cache_invalidation_log_v1": "v1's own record, kept as it is",
    "redis_sessions_v1": "v1's sessions, which ended with it",
    "schema_migrations_v1": "v1's own record of migrations, kept as it is",
}

_TUPLES = {"content", "created_at", "keep"}
_OPTIONS = {f.name for f in dataclasses.fields(TableMap)} - {"whole", "parts", "given"}


def table_map(values: Mapping[str, str]) -> TableMap:
    """The map that an operator gives: a column for each name, several joined by "+".

    Only ``table`` must be there. Everything else is the column of that name only if it
    is named, but for the key, which is "id".
    """
    unknown = sorted(set(values) - _OPTIONS)
    if unknown or not values.get("table"):
        raise InvalidArgument(
            f"A map has no {unknown[0]!r}." if unknown else "A map names no table.",
            f"Nothing was changed. It may name: {', '.join(sorted(_OPTIONS))}.",
        )
    if strange := [value for value in values.values() if "%" in value]:
        raise InvalidArgument(
            f"A name with a percent sign cannot be mapped: {strange[0]}.",
            "Nothing was changed. Make a view of the table, with other names.",
        )
    given: dict[str, Any] = {name: values.get(name) or None for name in _OPTIONS}
    for name in _TUPLES:
        given[name] = tuple(filter(None, (given[name] or "").split("+")))
    given["key"] = given["key"] or "id"
    if not given["content"] and not given["embedding"]:
        raise InvalidArgument(
            f"The map of {given['table']} names neither content nor embedding.",
            "Nothing was changed. Name the columns: content=body,embedding=vector",
        )
    return TableMap(given=True, **given)


def parse_map(text: str) -> TableMap:
    """`table_map` of ``table=notes,key=id,content=body,embedding=vector,owner=author``."""
    pairs = [part.partition("=") for part in text.split(",")]
    return table_map({name.strip(): value.strip() for name, _, value in pairs})


# --- Discovery ----------------------------------------------------------------

_RELATION = """
    SELECT c.oid, n.nspname, c.relname, c.relowner::regrole::text,
        has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE'),
        row_security_active(c.oid)
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""
_COLUMNS = """
    SELECT a.attname, t.typname, format_type(a.atttypid, a.atttypmod),
        CASE WHEN a.atttypmod > 0 AND t.typname IN ('vector', 'halfvec') THEN a.atttypmod END
    FROM pg_attribute AS a
    JOIN pg_type AS t ON t.oid = a.atttypid
    WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum
"""
_WITH_VECTORS = """
    SELECT c.relname, string_agg(a.attname, ', ' ORDER BY a.attnum)
    FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_type AS t ON t.oid = a.atttypid
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'm')
        AND NOT c.relispartition AND t.typname IN ('vector', 'halfvec')
        AND c.relname <> ALL (%s)
    GROUP BY c.relname
    ORDER BY c.relname
"""


def find_table(name: str, *, using: str = DEFAULT_DB_ALIAS) -> Table | None:
    """The table of that name, in schema public unless ``schema.table`` says another.

    Raises `PrivilegeMissing` where it is there and this role does not see all its rows.
    """
    schema, _, relation = name.rpartition(".")
    with connections[using].cursor() as cursor:
        cursor.execute(_RELATION, [schema or "public", relation])
        row = cursor.fetchone()
        if row is None:
            return None
        oid, schema, relation, owner, readable, filtered = row
        if not readable:
            cursor.execute("SELECT quote_ident(current_user), %s::regclass::text", [oid])
            role, table = cursor.fetchone()
            raise PrivilegeMissing(
                f"The role {role} may not read {name}, which belongs to {owner}.",
                f"Nothing was changed. As {owner}: GRANT SELECT ON {table} TO {role};",
            )
        if filtered:
            raise PrivilegeMissing(
                f"Row security hides rows of {name} from this role, so that not all would come.",
                f"Nothing was changed. Import as {owner}, or as a role with BYPASSRLS.",
            )
        cursor.execute(_COLUMNS, [oid])
        columns = {column[0]: Column(*column) for column in cursor.fetchall()}
    return Table(schema, relation, columns)


def other_tables_with_vectors(
    known: Iterable[str], *, using: str = DEFAULT_DB_ALIAS
) -> dict[str, str]:
    """Tables of schema public besides these that have vectors, and their columns' names."""
    with connections[using].cursor() as cursor:
        cursor.execute(_WITH_VECTORS, [list(known)])
        return dict(cursor.fetchall())


def count_rows(table: Table, *, using: str = DEFAULT_DB_ALIAS) -> int:
    """How many rows the table has."""
    with connections[using].cursor() as cursor:
        cursor.execute(sql.SQL("SELECT count(*) FROM {}").format(table.identifier))
        return int(cursor.fetchone()[0])


def moment(table: Table, names: Sequence[str]) -> sql.Composable:
    """The first of these times; one without a zone is taken for UTC, an infinite one for none."""
    times = [
        sql.SQL("{}").format(sql.Identifier("t", name))
        if table.has(name, {"timestamptz"})
        else sql.SQL("{}::timestamp AT TIME ZONE 'UTC'").format(sql.Identifier("t", name))
        for name in names
        if table.has(name, TIMES)
    ]
    if not times:
        return sql.SQL("NULL::timestamptz")
    return sql.SQL(
        "(SELECT CASE WHEN m.value BETWEEN '0001-01-02 UTC' AND '9999-12-30 UTC' THEN m.value END"
        " FROM (VALUES (coalesce({}))) AS m (value))"
    ).format(sql.SQL(", ").join(times))
