-- schema_migrations: one applied migration of this package, a row each.
--
-- Promises   SELECT version, applied_at, description FROM schema_migrations
--            ORDER BY applied_at  tells an operator what was applied and when.
-- Called by  the last operation of every migration; operators, from psql.
-- Locks      none but its own creation.
--
-- The columns are those of the earlier SQL runner, so that its scripts and
-- dashboards keep reading this table.

CREATE TABLE public.schema_migrations (
    version text PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    checksum text NOT NULL,
    description text NOT NULL,
    migration_type text NOT NULL DEFAULT 'schema'
);

COMMENT ON TABLE public.schema_migrations IS
    'One applied migration a row: version, time, SHA-256 of the migration and of the SQL files it runs.';
