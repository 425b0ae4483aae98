-- The earlier SQL runner's own table.

CREATE TABLE schema_migrations (
    version text PRIMARY KEY,
    applied_at timestamptz DEFAULT now(),
    checksum text,
    description text,
    migration_type varchar(50) DEFAULT 'schema'
);

INSERT INTO schema_migrations VALUES (
    '0001_initial_baseline.sql', '2025-01-01 10:00+00', 'SHA256:' || repeat('1', 64),
    'Initial baseline', 'baseline'
);
