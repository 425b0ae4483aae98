"""What a schema of a database consists of, as text that two moments can be compared by."""

from __future__ import annotations

from typing import NewType

import psycopg

#: Every object of a schema under its kind and name, with all that defines it.
Catalog = NewType("Catalog", dict[tuple[str, str], str])

# No OID and no attnum: a column dropped and added again has others, and is the
# same column. What an extension made is the extension's.
_CATALOG = """
WITH ours AS (
    SELECT c.oid, c.relname AS name, c.relkind, c.relnamespace
    FROM pg_class AS c
    WHERE c.relnamespace = 'public'::regnamespace
        AND NOT EXISTS (
            SELECT FROM pg_depend AS d
            WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
        )
)
SELECT 'relation', o.name::text, concat_ws(
    E'\\n', c.relkind, c.relpersistence, m.amname, c.relowner::regrole, c.relacl::text,
    c.reloptions::text, t.reloptions::text, c.relrowsecurity, c.relreplident,
    obj_description(c.oid, 'pg_class'))
FROM ours AS o
JOIN pg_class AS c ON c.oid = o.oid
LEFT JOIN pg_class AS t ON t.oid = c.reltoastrelid
LEFT JOIN pg_am AS m ON m.oid = c.relam
UNION ALL
SELECT 'column', o.name || '.' || a.attname, concat_ws(
    E'\\n', row_number() OVER (PARTITION BY o.oid ORDER BY a.attnum),
    format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid),
    a.attidentity, a.attgenerated, a.attstorage, a.attcompression, a.attstattarget,
    a.attoptions::text, a.attcollation::regcollation, a.attacl::text,
    col_description(o.oid, a.attnum))
FROM ours AS o
JOIN pg_attribute AS a ON a.attrelid = o.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
UNION ALL
SELECT 'constraint', o.name || '.' || c.conname, concat_ws(
    E'\\n', pg_get_constraintdef(c.oid), c.convalidated, obj_description(c.oid, 'pg_constraint'))
FROM ours AS o
JOIN pg_constraint AS c ON c.conrelid = o.oid
UNION ALL
SELECT 'index', i.indexrelid::regclass::text, concat_ws(
    E'\\n', pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisready, i.indisclustered,
    i.indisreplident)
FROM ours AS o
JOIN pg_index AS i ON i.indrelid = o.oid
UNION ALL
SELECT 'trigger', o.name || '.' || t.tgname, concat_ws(
    E'\\n', pg_get_triggerdef(t.oid), t.tgenabled, obj_description(t.oid, 'pg_trigger'))
FROM ours AS o
JOIN pg_trigger AS t ON t.tgrelid = o.oid AND NOT t.tgisinternal
UNION ALL
SELECT 'rule', o.name || '.' || r.rulename, pg_get_ruledef(r.oid)
FROM ours AS o
JOIN pg_rewrite AS r ON r.ev_class = o.oid
UNION ALL
SELECT 'policy', o.name || '.' || p.polname, pg_get_expr(p.polqual, p.polrelid)
FROM ours AS o
JOIN pg_policy AS p ON p.polrelid = o.oid
UNION ALL
SELECT 'sequence', o.name, concat_ws(
    E'\\n', format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmax, s.seqmin,
    s.seqcache, s.seqcycle)
FROM ours AS o
JOIN pg_sequence AS s ON s.seqrelid = o.oid
UNION ALL
SELECT 'statistics', s.stxname, pg_get_statisticsobjdef(s.oid)
FROM pg_statistic_ext AS s
WHERE s.stxnamespace = 'public'::regnamespace
UNION ALL
SELECT 'routine', p.oid::regprocedure::text, concat_ws(
    E'\\n', CASE WHEN p.prokind <> 'a' THEN pg_get_functiondef(p.oid) END, p.proconfig::text,
    p.proowner::regrole, p.proacl::text, obj_description(p.oid, 'pg_proc'))
FROM pg_proc AS p
WHERE p.pronamespace = 'public'::regnamespace
    AND NOT EXISTS (
        SELECT FROM pg_depend AS d
        WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
    )
UNION ALL
SELECT 'type', t.typname, concat_ws(
    E'\\n', t.typtype, t.typowner::regrole, t.typacl::text, pg_get_expr(t.typdefaultbin, 0),
    format_type(nullif(t.typbasetype, 0), t.typtypmod),
    (SELECT string_agg(e.enumlabel, ',' ORDER BY e.enumsortorder)
     FROM pg_enum AS e WHERE e.enumtypid = t.oid),
    obj_description(t.oid, 'pg_type'))
FROM pg_type AS t
WHERE t.typnamespace = 'public'::regnamespace
    AND NOT EXISTS (
        SELECT FROM pg_depend AS d
        WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e'
    )
UNION ALL
SELECT 'extension', e.extname, concat_ws(' ', e.extversion, e.extnamespace::regnamespace)
FROM pg_extension AS e
UNION ALL
SELECT 'schema', n.nspname, n.nspacl::text
FROM pg_namespace AS n
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
UNION ALL
SELECT 'default privileges', concat_ws(' ', a.defaclrole::regrole, a.defaclobjtype),
    a.defaclacl::text
FROM pg_default_acl AS a
-- So that equal ones are also written the same, whatever plan the catalogs' statistics make.
ORDER BY 1, 2
"""


def read_catalog(connection: psycopg.Connection) -> Catalog:
    """Every object of schema public, and the database's extensions and schemas."""
    rows = connection.execute(_CATALOG).fetchall()
    catalog = Catalog({(kind, name): definition for kind, name, definition in rows})
    assert len(catalog) == len(rows), "two objects under one name"
    return catalog
