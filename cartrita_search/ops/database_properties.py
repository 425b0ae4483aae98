"""What belongs to a database and is in no dump of it: owner, locale, rights, settings."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

#: Settings that hold a list of names, which one literal would make a single name.
_LISTS = {
    "search_path",
    "temp_tablespaces",
    "local_preload_libraries",
    "session_preload_libraries",
}
#: What `database_properties` tells.
PROPERTIES = {
    "owner",
    "encoding",
    "tablespace",
    "comment",
    "connection_limit",
    "provider",
    "collate",
    "ctype",
    "locale",
    "icu_rules",
    "rights",
    "settings",
}
_PROVIDERS = {"c": "libc", "i": "icu", "b": "builtin"}


def database_properties(connection: psycopg.Connection, name: str) -> dict[str, Any] | None:
    """The properties of the database ``name``, as JSON holds them; None if there is none."""
    row = connection.execute(
        """
        SELECT to_jsonb(d), pg_encoding_to_char(d.encoding), pg_get_userbyid(d.datdba),
            t.spcname, shobj_description(d.oid, 'pg_database')
        FROM pg_database AS d JOIN pg_tablespace AS t ON t.oid = d.dattablespace
        WHERE d.datname = %s
        """,
        [name],
    ).fetchone()
    if row is None:
        return None
    catalog, encoding, owner, tablespace, comment = row
    rights = connection.execute(
        """
        SELECT r.rolname, a.privilege_type, a.is_grantable
        FROM pg_database AS d CROSS JOIN aclexplode(d.datacl) AS a
        LEFT JOIN pg_roles AS r ON r.oid = a.grantee
        WHERE d.datname = %s
        ORDER BY 1, 2
        """,
        [name],
    ).fetchall()
    settings = connection.execute(
        """
        SELECT r.rolname, split_part(u.c, '=', 1), substr(u.c, strpos(u.c, '=') + 1)
        FROM pg_db_role_setting AS s
        JOIN pg_database AS d ON d.oid = s.setdatabase
        CROSS JOIN unnest(s.setconfig) WITH ORDINALITY AS u (c, position)
        LEFT JOIN pg_roles AS r ON r.oid = s.setrole
        WHERE d.datname = %s
        ORDER BY s.setrole, u.position
        """,
        [name],
    ).fetchall()
    return {
        "owner": owner,
        "encoding": encoding,
        "tablespace": tablespace,
        "comment": comment,
        "connection_limit": catalog["datconnlimit"],
        "provider": _PROVIDERS.get(catalog["datlocprovider"], "libc"),
        "collate": catalog["datcollate"],
        "ctype": catalog["datctype"],
        # datlocale since PostgreSQL 17.
        "locale": catalog.get("datlocale") or catalog.get("daticulocale"),
        "icu_rules": catalog.get("daticurules"),
        # None: nothing was ever granted or revoked.
        "rights": None if catalog["datacl"] is None else [list(right) for right in rights],
        "settings": [list(setting) for setting in settings],
    }


def creation(name: str, properties: dict[str, Any]) -> sql.Composed:
    """CREATE DATABASE ``name`` with the encoding, locale, tablespace and owner given."""
    options = [
        sql.SQL("ENCODING {}").format(properties["encoding"]),
        sql.SQL("LOCALE_PROVIDER {}").format(sql.Identifier(properties["provider"])),
        sql.SQL("LC_COLLATE {}").format(properties["collate"]),
        sql.SQL("LC_CTYPE {}").format(properties["ctype"]),
        sql.SQL("OWNER {}").format(sql.Identifier(properties["owner"])),
    ]
    # Named, even the default one takes a right on it.
    if properties["tablespace"] != "pg_default":
        options.append(sql.SQL("TABLESPACE {}").format(sql.Identifier(properties["tablespace"])))
    if properties["provider"] == "icu":
        options.append(sql.SQL("ICU_LOCALE {}").format(properties["locale"]))
        if properties["icu_rules"]:
            options.append(sql.SQL("ICU_RULES {}").format(properties["icu_rules"]))
    elif properties["provider"] == "builtin":
        options.append(sql.SQL("BUILTIN_LOCALE {}").format(properties["locale"]))
    return sql.SQL("CREATE DATABASE {} TEMPLATE template0 {}").format(
        sql.Identifier(name), sql.SQL(" ").join(options)
    )


def apply_properties(
    connection: psycopg.Connection, name: str, properties: dict[str, Any]
) -> list[str]:
    """Give the database ``name`` rights, settings, connection limit and comment.

    Returns what could not be given, in words and without values, which may be secret.
    """
    database = sql.Identifier(name)
    refused: list[str] = []

    def attempt(what: str, *statements: sql.Composed) -> None:
        try:
            with connection.transaction():
                for statement in statements:
                    connection.execute(statement)
        except psycopg.Error as error:
            refused.append(f"{what}: {error.diag.message_primary or error}")

    limit = sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}")
    attempt("the connection limit", limit.format(database, properties["connection_limit"]))
    comment = sql.SQL("COMMENT ON DATABASE {} IS {}")
    attempt("the comment", comment.format(database, properties["comment"]))
    if properties["rights"] is not None:
        revoke = sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC")
        attempt("rights of PUBLIC", revoke.format(database))
        for role, privilege, grantable in properties["rights"]:
            grant = sql.SQL("GRANT {} ON DATABASE {} TO {}{}").format(
                sql.SQL(privilege),
                database,
                sql.Identifier(role) if role else sql.SQL("PUBLIC"),
                sql.SQL(" WITH GRANT OPTION" if grantable else ""),
            )
            attempt(f"{privilege} for {role or 'PUBLIC'}", grant)
    for role, setting, value in properties["settings"]:
        whose = sql.SQL("DATABASE {}").format(database)
        if role:
            whose = sql.SQL("ROLE {} IN {}").format(sql.Identifier(role), whose)
        # A parameter of an extension has a dot, each part of it a name.
        named = sql.SQL(".").join(map(sql.Identifier, setting.split(".")))
        what = f"the setting {setting}" + (f" of role {role}" if role else "")
        if setting in _LISTS:
            attempt(
                what,
                sql.SQL("SELECT set_config({}, {}, true)").format(setting, value),
                sql.SQL("ALTER {} SET {} FROM CURRENT").format(whose, named),
            )
        else:
            attempt(what, sql.SQL("ALTER {} SET {} TO {}").format(whose, named, value))
    return refused
