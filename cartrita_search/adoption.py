"""What others made under names that this package needs: set aside, and put back.

A database in which the earlier SQL runner was used has tables, functions and a view
of our names in another shape. A migration renames each of them before it makes its
own object, and gives the name back when it is reversed. That is written down at the
object itself, as the first line of its comment: psql shows it, and a dump has it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from .db import Requirement

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

_SUFFIX = "_v1"
#: Bytes of a name that leave room for the suffix in PostgreSQL's 63.
_LONGEST = 63 - len(_SUFFIX)

_MARK = 'Was "{}" until Cartrita search took the name; reversing its migrations renames it back.'
_MARKED = re.compile(_MARK.replace("{}", "(.+?)") + r"(?:\n(.*))?", re.DOTALL)

#: What ALTER and COMMENT ON call each kind of object: pg_class.relkind, and R for routines.
_KINDS = {
    "r": "TABLE",
    "p": "TABLE",
    "v": "VIEW",
    "m": "MATERIALIZED VIEW",
    "f": "FOREIGN TABLE",
    "S": "SEQUENCE",
    "i": "INDEX",
    "I": "INDEX",
    "R": "ROUTINE",
}

# A table's indexes and own sequences come with it: theirs are names of the schema too.
# What an extension made is the extension's.
_FIND = """
    WITH named AS (
        SELECT c.oid FROM pg_class AS c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY (%(names)s)
            AND c.relkind <> 'c'
    ), relations AS (
        SELECT n.oid FROM named AS n
        UNION
        SELECT i.indexrelid FROM pg_index AS i JOIN named AS n ON n.oid = i.indrelid
        UNION
        SELECT d.objid FROM pg_depend AS d
        JOIN named AS n ON n.oid = d.refobjid
        JOIN pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
        WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
            AND d.deptype IN ('a', 'i')
    ), found AS (
        SELECT 'pg_class'::regclass AS class, c.oid, c.relkind::text AS kind, c.relname AS name,
            '' AS arguments, c.relowner AS owner
        FROM relations AS r JOIN pg_class AS c USING (oid)
        UNION ALL
        SELECT 'pg_proc'::regclass, p.oid, 'R', p.proname,
            pg_get_function_identity_arguments(p.oid), p.proowner
        FROM pg_proc AS p
        WHERE p.pronamespace = 'public'::regnamespace AND p.proname = ANY (%(names)s)
    )
    SELECT f.kind, f.name::text, f.arguments, pg_get_userbyid(f.owner)::text,
        pg_has_role(f.owner, 'USAGE'), obj_description(f.oid, f.class::text::name)
    FROM found AS f
    WHERE NOT EXISTS (
        SELECT FROM pg_depend AS e
        WHERE e.classid = f.class AND e.objid = f.oid AND e.deptype = 'e')
    ORDER BY f.class DESC, f.oid
"""

# Tables have types of their name too; these are those of nothing else.
_FIND_TYPES = """
    SELECT t.typname::text FROM pg_type AS t
    LEFT JOIN pg_class AS c ON c.oid = t.typrelid
    WHERE t.typnamespace = 'public'::regnamespace AND t.typname = ANY (%s)
        AND coalesce(c.relkind, 'c') = 'c'
    ORDER BY 1
"""

_FIND_MARKED = """
    SELECT coalesce(c.relkind::text, 'R'), coalesce(c.relname, p.proname)::text,
        coalesce(pg_get_function_identity_arguments(p.oid), ''), d.description
    FROM pg_description AS d
    LEFT JOIN pg_class AS c
        ON d.classoid = 'pg_class'::regclass AND c.oid = d.objoid
        AND c.relnamespace = 'public'::regnamespace
    LEFT JOIN pg_proc AS p
        ON d.classoid = 'pg_proc'::regclass AND p.oid = d.objoid
        AND p.pronamespace = 'public'::regnamespace
    WHERE d.objsubid = 0 AND (c.oid IS NOT NULL OR p.oid IS NOT NULL)
        AND starts_with(d.description, 'Was "')
"""


@dataclass(frozen=True)
class SetAside:
    """An object of schema public that was renamed for ours."""

    kind: str
    former: str
    present: str

    def __str__(self) -> str:
        return f"{self.kind} {self.former} is now {self.present}"


@dataclass(frozen=True)
class _Object:
    kind: str
    name: str
    arguments: str
    owner: str
    is_mine: bool
    comment: str | None

    @property
    def former(self) -> str | None:
        """The name that it had before it was set aside, if it was."""
        marked = _MARKED.fullmatch(self.comment or "")
        return marked[1] if marked else None

    @property
    def aside(self) -> str:
        return self.name.encode()[:_LONGEST].decode(errors="ignore") + _SUFFIX

    def __str__(self) -> str:
        return f"{_KINDS[self.kind].lower()} {self.name}"


def set_aside(connection: BaseDatabaseWrapper, names: Collection[str]) -> None:
    """Rename whatever in schema public has one of these names to ``<name>_v1``.

    With a table go its indexes and sequences; all keep their rows, rights and dependents.
    """
    for found in _find(connection, names):
        comment = _MARK.format(found.name)
        if found.comment is not None:
            comment += f"\n{found.comment}"
        _rename(connection, found, found.aside, comment)


def put_back(connection: BaseDatabaseWrapper, names: Collection[str]) -> None:
    """Give what was set aside for these names its name and its comment back."""
    present = [found.present for found in all_set_aside(connection) if found.former in names]
    for found in _find(connection, present) if present else ():
        marked = _MARKED.fullmatch(found.comment or "")
        if marked is not None:
            _rename(connection, found, marked[1], marked[2])


def all_set_aside(connection: BaseDatabaseWrapper) -> list[SetAside]:
    """All that is set aside now."""
    with connection.cursor() as cursor:
        cursor.execute(_FIND_MARKED)
        rows = cursor.fetchall()
    return [
        SetAside(_KINDS[kind].lower(), marked[1], name)
        for kind, name, _, comment in rows
        if (marked := _MARKED.fullmatch(comment)) is not None
    ]


def obstacle(connection: BaseDatabaseWrapper, names: Collection[str]) -> Requirement | None:
    """Why what has these names cannot be set aside, or None. Changes nothing."""
    found = _find(connection, names)
    foreign = [each for each in found if not each.is_mine]
    with connection.cursor() as cursor:
        if foreign:
            cursor.execute("SELECT quote_ident(current_user), quote_ident(%s)", [foreign[0].owner])
            me, owner = cursor.fetchone()
            owned = ", ".join(str(each) for each in foreign if each.owner == foreign[0].owner)
            return Requirement(
                f"Role {owner} owns what has to be renamed: {owned}.",
                f"Run as a superuser: GRANT {owner} TO {me}; or migrate as {owner}"
                " (MIGRATE_DATABASE_URL).",
            )
        cursor.execute(
            "SELECT relname::text FROM pg_class"
            " WHERE relnamespace = 'public'::regnamespace AND relname = ANY (%s) ORDER BY 1",
            [[each.aside for each in found if each.kind != "R"]],
        )
        taken = [name for (name,) in cursor.fetchall()]
        cursor.execute(_FIND_TYPES, [list(names)])
        types = [name for (name,) in cursor.fetchall()]
    if types:
        return Requirement(
            f"There are types under names that this package needs: {', '.join(types)}.",
            "Rename these first (ALTER TYPE … RENAME TO …).",
        )
    if taken:
        return Requirement(
            f"The names of v1's objects once renamed are taken: {', '.join(taken)}.",
            "Rename these first (ALTER TABLE … RENAME TO …).",
        )
    return None


def _find(connection: BaseDatabaseWrapper, names: Collection[str]) -> list[_Object]:
    with connection.cursor() as cursor:
        cursor.execute(_FIND, {"names": list(names)})
        return [_Object(*row) for row in cursor.fetchall()]


def _rename(
    connection: BaseDatabaseWrapper, found: _Object, name: str, comment: str | None
) -> None:
    arguments = (
        sql.SQL("({})").format(sql.SQL(found.arguments)) if found.kind == "R" else sql.SQL("")
    )
    parts = {
        "kind": sql.SQL(_KINDS[found.kind]),
        "old": sql.Identifier("public", found.name) + arguments,
        "new": sql.Identifier(name),
        "renamed": sql.Identifier("public", name) + arguments,
        "comment": sql.Literal(comment),
    }
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("ALTER {kind} {old} RENAME TO {new}").format(**parts))
        cursor.execute(sql.SQL("COMMENT ON {kind} {renamed} IS {comment}").format(**parts))
