-- The earlier SQL runner's weights, metrics, sessions and hybrid search.

CREATE TABLE retrieval_configs (
    id serial PRIMARY KEY,
    user_id integer REFERENCES users (id) ON DELETE CASCADE,
    config_name varchar(255) NOT NULL DEFAULT 'default',
    vector_weight float DEFAULT 0.7,
    keyword_weight float DEFAULT 0.3,
    rerank_enabled boolean DEFAULT false,
    max_results integer DEFAULT 10,
    similarity_threshold float DEFAULT 0.5,
    is_active boolean DEFAULT true,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);

INSERT INTO retrieval_configs
    (user_id, config_name, vector_weight, keyword_weight, max_results, is_active)
VALUES
    (1, 'default', 0.6, 0.4, 20, true),
    (2, 'default', 0.9, 0.9, 10, true),
    (2, 'other', 0.5, 0.5, 10, true),
    (3, 'default', NULL, NULL, NULL, true),
    (NULL, 'default', 0.7, 0.3, 10, true);

CREATE TABLE search_performance_metrics (
    id serial PRIMARY KEY,
    user_id integer,
    query_text text,
    search_type varchar(50),
    result_count integer,
    execution_time_ms integer,
    cache_hit boolean DEFAULT false,
    created_at timestamptz DEFAULT now(),
    metadata jsonb DEFAULT '{}'
);

INSERT INTO search_performance_metrics (user_id, query_text, search_type, result_count)
VALUES (1, 'looms', 'hybrid', 3);

CREATE TABLE redis_sessions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    session_key varchar(255) NOT NULL UNIQUE,
    user_id integer,
    data_type varchar(100),
    ttl_seconds integer,
    created_at timestamptz DEFAULT now(),
    expires_at timestamptz,
    metadata jsonb DEFAULT '{}'
);

INSERT INTO redis_sessions (session_key, user_id) VALUES ('sess:1', 1);

CREATE TABLE cache_invalidation_log (
    id serial PRIMARY KEY,
    cache_key varchar(255),
    cache_namespace varchar(100),
    invalidation_reason text,
    invalidated_by varchar(100),
    created_at timestamptz DEFAULT now(),
    metadata jsonb DEFAULT '{}'
);

INSERT INTO cache_invalidation_log (cache_key, invalidation_reason) VALUES ('search:1', 'test');

ALTER TABLE knowledge_entries ADD COLUMN search_vector tsvector;

CREATE FUNCTION update_knowledge_search_vector() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.search_vector := to_tsvector('english', NEW.title || ' ' || NEW.content);
    RETURN NEW;
END;
$$;

CREATE TRIGGER knowledge_entries_search_vector
BEFORE INSERT OR UPDATE ON knowledge_entries
FOR EACH ROW EXECUTE FUNCTION update_knowledge_search_vector();

UPDATE knowledge_entries SET title = title;

CREATE FUNCTION hybrid_search(
    query_text text,
    query_embedding vector(1536),
    vector_weight float DEFAULT 0.7,
    keyword_weight float DEFAULT 0.3,
    similarity_threshold float DEFAULT 0.5,
    match_count int DEFAULT 10,
    user_id_filter int DEFAULT NULL
) RETURNS TABLE (id int, title varchar, content text, hybrid_score float)
LANGUAGE sql STABLE AS $$
    SELECT k.id, k.title, k.content,
        vector_weight * (1 - (k.embedding <=> query_embedding))
            + keyword_weight * ts_rank(k.search_vector, plainto_tsquery('english', query_text))
    FROM knowledge_entries AS k
    WHERE k.embedding IS NOT NULL AND (user_id_filter IS NULL OR k.user_id = user_id_filter)
    ORDER BY 4 DESC
    LIMIT match_count
$$;

INSERT INTO schema_migrations VALUES (
    '0004_add_redis_hybrid_search.sql', '2025-01-01 10:03+00', 'SHA256:' || repeat('4', 64),
    'Hybrid search', 'schema'
);
