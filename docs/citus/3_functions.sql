-- Step 3 of 3: functions that name the owner, so that one node answers each half.
--
-- NOT RUN ON CITUS. They take the place of upsert_embedding() and similarity_search(),
-- which look through all owners and so through all shards.

-- owner_upsert(owner, …) -> uuid: as upsert_embedding(), for an owner that stays. A
-- document changes hands by being deleted and stored anew: Citus moves no row.
CREATE FUNCTION public.owner_upsert(
    p_owner bigint,
    p_source_table text,
    p_source_id text,
    p_embedding vector,
    p_model text,
    p_title text,
    p_content text,
    p_metadata jsonb DEFAULT '{}',
    p_chunk_index integer DEFAULT 0,
    p_language text DEFAULT 'english',
    p_tags text [] DEFAULT '{}'
)
RETURNS uuid
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
DECLARE
    _dimensions integer;
    _hash CONSTANT text := document_content_hash(p_title, p_content);
    _document uuid;
BEGIN
    SELECT m.dimensions INTO _dimensions FROM embedding_models AS m WHERE m.name = p_model;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'There is no embedding model "%".', p_model
            USING ERRCODE = 'SE003', HINT = 'Nothing was changed. Register it on the coordinator.';
    END IF;
    PERFORM check_vector(p_embedding, _dimensions, p_model);

    INSERT INTO search_documents AS d (
        user_id, source_table, source_id, chunk_index, title, content, content_hash,
        metadata, language, tags
    )
    VALUES (
        p_owner, p_source_table, p_source_id, p_chunk_index, p_title, p_content, _hash,
        p_metadata, p_language, p_tags
    )
    ON CONFLICT (user_id, source_table, source_id, chunk_index) DO UPDATE
    SET title = excluded.title,
        content = excluded.content,
        content_hash = excluded.content_hash,
        metadata = excluded.metadata,
        language = excluded.language,
        tags = excluded.tags
    RETURNING d.id INTO _document;

    INSERT INTO embeddings AS e (
        user_id, document_id, source_table, source_id, chunk_index, embedding_model,
        embedding, content_hash, metadata
    )
    VALUES (
        p_owner, _document, p_source_table, p_source_id, p_chunk_index, p_model,
        p_embedding, _hash, p_metadata
    )
    ON CONFLICT (user_id, document_id, embedding_model) DO UPDATE
    SET embedding = excluded.embedding,
        content_hash = excluded.content_hash,
        metadata = excluded.metadata;
    RETURN _document;
END;
$$;

-- owner_similarity_search(owner, …): the owner's own and shared rows, nearest first.
CREATE FUNCTION public.owner_similarity_search(
    p_owner bigint, p_embedding vector, p_model text, p_count integer DEFAULT 10
)
RETURNS TABLE (
    document_id uuid,
    user_id bigint,
    source_table text,
    source_id text,
    chunk_index integer,
    similarity double precision
)
LANGUAGE plpgsql
STABLE
SET search_path = public, pg_temp
AS $$
DECLARE
    _dimensions integer;
    _half text;
    _statement text := '';
    _owner bigint;
BEGIN
    SELECT m.dimensions INTO _dimensions FROM embedding_models AS m WHERE m.name = p_model;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'There is no embedding model "%".', p_model USING ERRCODE = 'SE003';
    END IF;
    PERFORM check_vector(p_embedding, _dimensions, p_model);
    -- Each half names one owner, and so is one shard's. One's own rows are few, and read
    -- by embeddings_model_user_id; the shared ones by the vector index of their shard.
    FOREACH _owner IN ARRAY ARRAY[p_owner, 0] LOOP
        _half := format(
            '(SELECT e.document_id, e.user_id, e.source_table, e.source_id, e.chunk_index,
                  1 - (e.embedding <=> $1) AS similarity
              FROM embeddings AS e
              WHERE e.user_id = %s AND e.embedding_model = %L
              ORDER BY e.embedding::halfvec(%s) <=> $1::halfvec(%s) LIMIT %s)',
            _owner, p_model, _dimensions, _dimensions, p_count
        );
        _statement := _statement || CASE WHEN _statement = '' THEN '' ELSE ' UNION ' END || _half;
    END LOOP;
    RETURN QUERY EXECUTE
        format('SELECT * FROM (%s) AS h ORDER BY 6 DESC, 1 LIMIT %s', _statement, p_count)
        USING p_embedding;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.owner_upsert FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION public.owner_similarity_search FROM PUBLIC;

-- A call goes to the worker that holds its owner.
SELECT
    create_distributed_function(
        'public.owner_upsert(bigint, text, text, vector, text, text, text, jsonb, integer, text, text[])',
        'p_owner',
        colocate_with => 'public.search_documents'
    );
