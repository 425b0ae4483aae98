-- A few rows in each table of v1: with and without an owner, with and without a vector.

CREATE FUNCTION pg_temp.direction(seed integer) RETURNS vector
LANGUAGE sql AS $$
    SELECT array_agg(sin(seed * 1000 + i)::real ORDER BY i)::vector(1536)
    FROM generate_series(1, 1536) AS i
$$;

-- bcrypt of 'correct horse 1', 'correct horse 2', 'correct horse 3', at cost 4.
INSERT INTO users (name, email, password_hash, role, is_admin) VALUES
    ('Ada', 'ada@example.com', '$2b$04$abcdefghijklmnopqrstuu..ECdwB5ftHOtfZdMoWOaxWtbxL1ouK', 'admin', true),
    ('Grace', 'grace@example.com', '$2b$04$abcdefghijklmnopqrstuufyaK8GYFltQjtL/Be2t4p/CfaF1dCAy', 'user', false),
    ('Edsger', 'Edsger@Example.com', '$2b$04$abcdefghijklmnopqrstuuBot6Y.Am1Mjgo2SmmjPrUnFsTzNSS5W', NULL, NULL);

INSERT INTO knowledge_entries
    (user_id, title, content, embedding, tags, category, source_url, metadata)
SELECT
    CASE WHEN n % 4 > 0 THEN n % 3 + 1 END,
    'Entry ' || n,
    'Entry number ' || n || ' tells of compilers and their optimisations.',
    CASE WHEN n % 5 > 0 THEN pg_temp.direction(n) END,
    ARRAY['note', 'n' || n],
    'engineering',
    'https://example.com/' || n,
    jsonb_build_object('number', n)
FROM generate_series(1, 12) AS n;

INSERT INTO knowledge_documents (user_id, title, content, content_hash, file_type) VALUES
    (1, 'On engines', 'The engine weaves algebraical patterns.', repeat('a', 64), 'txt'),
    (2, 'On nanoseconds', NULL, repeat('b', 64), 'pdf');

INSERT INTO knowledge_chunks (document_id, user_id, chunk_text, chunk_index, chunk_tokens, embedding)
SELECT
    d, d, 'Chunk ' || n || ' of document ' || d || ' about wires and looms.', n, 9,
    CASE WHEN n <> 2 THEN pg_temp.direction(100 + 10 * d + n) END
FROM generate_series(1, 2) AS d, generate_series(0, 3) AS n;

INSERT INTO search_index (user_id, content_type, content_id, title, content, url, tags, embedding)
SELECT
    CASE WHEN n % 3 > 0 THEN n % 3 END, 'message', n::text,
    CASE WHEN n > 1 THEN 'Message ' || n END, 'Message body ' || n, NULL, ARRAY['mail'],
    CASE WHEN n % 2 > 0 THEN pg_temp.direction(200 + n) END
FROM generate_series(1, 6) AS n;

INSERT INTO mcp_tasks (user_id, task_type, parameters, result, status, embedding)
SELECT
    CASE WHEN n > 1 THEN 2 END, 'summarise', jsonb_build_object('page', n),
    CASE WHEN n < 4 THEN jsonb_build_object('summary', 'Page ' || n || ' is about bees.') END,
    CASE WHEN n < 4 THEN 'completed' ELSE 'failed' END,
    CASE WHEN n < 3 THEN pg_temp.direction(300 + n) END
FROM generate_series(1, 4) AS n;

INSERT INTO knowledge_queries (user_id, query_text, query_embedding, results_count)
VALUES (1, 'looms', pg_temp.direction(400), 3), (NULL, 'bees', NULL, 0);
