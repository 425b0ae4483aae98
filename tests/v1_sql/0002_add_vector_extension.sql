-- The earlier SQL runner's table of vectors: no owner, no unique key, duplicates.

CREATE TABLE embeddings (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    source_table varchar(100) NOT NULL,
    source_id uuid NOT NULL,
    embedding vector(1536),
    embedding_model varchar(100) DEFAULT 'text-embedding-3-small',
    content_hash varchar(64),
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now(),
    metadata jsonb DEFAULT '{}'
);

COMMENT ON TABLE embeddings IS 'Unified vectors';

CREATE INDEX idx_embeddings_source ON embeddings (source_table, source_id);

CREATE FUNCTION upsert_embedding(
    p_source_table varchar(100),
    p_source_id uuid,
    p_embedding vector(1536),
    p_model varchar(100) DEFAULT 'text-embedding-3-small',
    p_content_hash varchar(64) DEFAULT NULL,
    p_metadata jsonb DEFAULT '{}'
) RETURNS uuid
LANGUAGE plpgsql AS $$
DECLARE
    found uuid;
BEGIN
    INSERT INTO embeddings
        (source_table, source_id, embedding, embedding_model, content_hash, metadata)
    VALUES (p_source_table, p_source_id, p_embedding, p_model, p_content_hash, p_metadata)
    RETURNING id INTO found;
    RETURN found;
END;
$$;

COMMENT ON FUNCTION upsert_embedding IS 'Stores one vector';

CREATE FUNCTION similarity_search(
    query_embedding vector(1536),
    match_threshold float DEFAULT 0.7,
    match_count int DEFAULT 10,
    source_filter varchar(100) DEFAULT NULL
) RETURNS TABLE (id uuid, source_table varchar, source_id uuid, similarity float, metadata jsonb)
LANGUAGE sql STABLE AS $$
    SELECT e.id, e.source_table, e.source_id, 1 - (e.embedding <=> query_embedding), e.metadata
    FROM embeddings AS e
    WHERE 1 - (e.embedding <=> query_embedding) > match_threshold
        AND (source_filter IS NULL OR e.source_table = source_filter)
    ORDER BY e.embedding <=> query_embedding
    LIMIT match_count
$$;

SELECT upsert_embedding(
    'search_index', id, embedding, 'text-embedding-3-small', md5(content), '{"n": 1}'
)
FROM search_index WHERE embedding IS NOT NULL;

-- Duplicates, and one whose source row is gone.
SELECT upsert_embedding('search_index', source_id, embedding, embedding_model, content_hash)
FROM embeddings;
INSERT INTO embeddings (source_table, source_id, embedding)
SELECT 'messages', '00000000-0000-4000-8000-000000000001', embedding FROM embeddings LIMIT 1;
INSERT INTO embeddings (source_table, source_id)
VALUES ('messages', '00000000-0000-4000-8000-000000000002');

INSERT INTO schema_migrations VALUES (
    '0002_add_vector_extension.sql', '2025-01-01 10:01+00', 'SHA256:' || repeat('2', 64),
    'Unified embeddings', 'schema'
);
