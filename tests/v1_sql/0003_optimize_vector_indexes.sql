-- The earlier SQL runner's indexes, their rebuilding, and a view of statistics.

CREATE INDEX embeddings_vector ON embeddings
    USING hnsw (embedding vector_cosine_ops);

CREATE FUNCTION rebuild_vector_indexes() RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    REINDEX INDEX embeddings_vector;
END;
$$;

CREATE VIEW vector_search_stats AS
SELECT source_table, embedding_model, count(*) AS total, max(created_at) AS latest
FROM embeddings
GROUP BY source_table, embedding_model;

INSERT INTO schema_migrations (version, applied_at, checksum) VALUES (
    '0003_optimize_vector_indexes.sql', '2025-01-01 10:02+00', NULL
);
