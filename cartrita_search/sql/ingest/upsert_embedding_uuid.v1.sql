-- upsert_embedding(source_table, source_id uuid, ...) -> uuid
--
-- Promises   the same as upsert_embedding with a text key, for callers whose
--            key has type uuid: PostgreSQL does not cast uuid to text by itself.
--            An untyped literal ('abc') still means the text form.

CREATE FUNCTION public.upsert_embedding(
    p_source_table text,
    p_source_id uuid,
    p_embedding vector,
    p_model text DEFAULT NULL,
    p_content_hash text DEFAULT NULL,
    p_metadata jsonb DEFAULT NULL,
    p_title text DEFAULT NULL,
    p_content text DEFAULT NULL,
    p_user_id bigint DEFAULT NULL,
    p_chunk_index integer DEFAULT 0,
    p_language text DEFAULT NULL,
    p_tags text [] DEFAULT NULL
)
RETURNS uuid
LANGUAGE sql
RETURN public.upsert_embedding(
    p_source_table, p_source_id::text, p_embedding, p_model, p_content_hash, p_metadata,
    p_title, p_content, p_user_id, p_chunk_index, p_language, p_tags
);

REVOKE EXECUTE ON FUNCTION public.upsert_embedding(
    text, uuid, vector, text, text, jsonb, text, text, bigint, integer, text, text []
) FROM PUBLIC;

COMMENT ON FUNCTION public.upsert_embedding(
    text, uuid, vector, text, text, jsonb, text, text, bigint, integer, text, text []
) IS 'upsert_embedding for keys of type uuid.';
