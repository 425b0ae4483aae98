-- upsert_embedding(source_table, source_id, embedding, model, content_hash,
--                  metadata, title, content, user_id, chunk_index, language,
--                  tags) -> uuid
--
-- Promises   afterwards exactly one vector stands for (source, chunk, model),
--            and its id is returned. The document's row is made or brought up
--            to date in the same step. Where text hash, vector, metadata, owner
--            and the rest are all as stored, nothing is written at all.
--            An argument left NULL keeps what is stored: an upsert that does not
--            name the owner never makes a private document shared.
-- Raises     SE001 dimension, SE002 no direction, SE003 no model,
--            SE008 empty source, missing vector, metadata not an object,
--            unknown language. Nothing is changed then.
-- Called by  applications, Django or not; the first six parameters stand in the
--            order that v1's callers use by position.
-- Locks      row locks on the one document and vector. Safe under concurrency:
--            every writer of a key waits for the one before it.
-- Volatility VOLATILE.
--
-- content_hash is the hash of the text that was embedded; left out, it is
-- document_content_hash(title, content). A vector is stale when its hash is no
-- longer its document's.

CREATE FUNCTION public.upsert_embedding(
    p_source_table text,
    p_source_id text,
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
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
DECLARE
    _model embedding_models;
    _document_id uuid;
    _content_hash text;
    _id uuid;
BEGIN
    IF coalesce(p_source_table, '') = '' OR coalesce(p_source_id, '') = '' THEN
        RAISE EXCEPTION 'source_table and source_id must name the row that was embedded; one is empty.'
            USING ERRCODE = 'SE008', HINT = 'Nothing was changed.';
    END IF;
    IF length(p_source_table) > 128 OR length(p_source_id) > 500 THEN
        RAISE EXCEPTION 'source_table has up to 128 characters and source_id up to 500; these have % and %.',
            length(p_source_table), length(p_source_id)
            USING ERRCODE = 'SE008', HINT = 'Nothing was changed. Use a shorter key, a hash for instance.';
    END IF;
    IF p_chunk_index IS NULL OR p_chunk_index < 0 THEN
        RAISE EXCEPTION 'chunk_index counts from 0; it is %.', coalesce(p_chunk_index::text, 'NULL')
            USING ERRCODE = 'SE008', HINT = 'Nothing was changed. Leave it out for a document of one chunk.';
    END IF;
    IF p_embedding IS NULL THEN
        RAISE EXCEPTION 'The embedding of %/% is NULL.', p_source_table, p_source_id
            USING ERRCODE = 'SE008',
                HINT = 'Nothing was changed. Insert a document that awaits its vector into search_documents instead.';
    END IF;
    IF jsonb_typeof(p_metadata) <> 'object' THEN
        RAISE EXCEPTION 'metadata must be a JSON object, not %.', jsonb_typeof(p_metadata)
            USING ERRCODE = 'SE008', HINT = 'Nothing was changed. Wrap the value: {"value": ...}.';
    END IF;
    IF p_language IS NOT NULL THEN
        p_language := text_search_language(p_language)::text;
    END IF;
    _model := register_embedding_model(p_model, vector_dims(p_embedding));

    -- The usual call of a nightly job finds everything as it was. Looking first
    -- costs two index reads and spares the row lock that ON CONFLICT takes.
    SELECT e.id INTO _id
    FROM search_documents AS d
    INNER JOIN embeddings AS e ON e.document_id = d.id AND e.embedding_model = _model.name
    WHERE d.source_table = p_source_table
        AND d.source_id = p_source_id
        AND d.chunk_index = p_chunk_index
        AND e.embedding = p_embedding
        AND e.content_hash = d.content_hash
        AND (p_content_hash IS NULL OR d.content_hash = p_content_hash)
        AND (p_title IS NULL OR d.title = p_title)
        AND (p_content IS NULL OR d.content = p_content)
        AND (p_user_id IS NULL OR d.user_id = p_user_id)
        AND (p_language IS NULL OR d.language = p_language)
        AND (p_tags IS NULL OR d.tags = p_tags)
        -- 'keyword_index' is our own note on an overlong document.
        AND (p_metadata IS NULL OR d.metadata - 'keyword_index' = p_metadata - 'keyword_index');
    IF FOUND THEN
        RETURN _id;
    END IF;

    -- A new vector for an unchanged document, as under another model: the row
    -- stays as it is, held so that nobody deletes it meanwhile.
    SELECT d.id, d.content_hash INTO _document_id, _content_hash
    FROM search_documents AS d
    WHERE d.source_table = p_source_table
        AND d.source_id = p_source_id
        AND d.chunk_index = p_chunk_index
        AND (p_content_hash IS NULL OR d.content_hash = p_content_hash)
        AND (p_title IS NULL OR d.title = p_title)
        AND (p_content IS NULL OR d.content = p_content)
        AND (p_user_id IS NULL OR d.user_id = p_user_id)
        AND (p_language IS NULL OR d.language = p_language)
        AND (p_tags IS NULL OR d.tags = p_tags)
        AND (p_metadata IS NULL OR d.metadata - 'keyword_index' = p_metadata - 'keyword_index')
    FOR SHARE;

    IF NOT FOUND THEN
        INSERT INTO search_documents AS d (
            source_table, source_id, chunk_index, user_id, title, content,
            tags, language, metadata, content_hash
        )
        VALUES (
            p_source_table, p_source_id, p_chunk_index, p_user_id,
            coalesce(p_title, ''), coalesce(p_content, ''), coalesce(p_tags, '{}'),
            coalesce(p_language, default_language()), coalesce(p_metadata, '{}'), p_content_hash
        )
        ON CONFLICT (source_table, source_id, chunk_index) DO UPDATE
        SET user_id = coalesce(p_user_id, d.user_id),
            title = coalesce(p_title, d.title),
            content = coalesce(p_content, d.content),
            tags = coalesce(p_tags, d.tags),
            language = coalesce(p_language, d.language),
            metadata = coalesce(p_metadata, d.metadata),
            content_hash = coalesce(p_content_hash, d.content_hash)
        RETURNING d.id, d.content_hash INTO _document_id, _content_hash;
    END IF;

    INSERT INTO embeddings AS e (document_id, embedding_model, embedding, content_hash)
    VALUES (_document_id, _model.name, p_embedding, _content_hash)
    ON CONFLICT (document_id, embedding_model) DO UPDATE
    SET embedding = excluded.embedding,
        content_hash = excluded.content_hash
    -- A new row version is a new entry in the vector index, the dearest write here.
    WHERE (e.embedding, e.content_hash) IS DISTINCT FROM (excluded.embedding, excluded.content_hash)
    RETURNING e.id INTO _id;
    IF NOT FOUND THEN
        -- The row is as it should be, and locked by ON CONFLICT all the same.
        SELECT e.id INTO STRICT _id
        FROM embeddings AS e
        WHERE e.document_id = _document_id AND e.embedding_model = _model.name;
    END IF;
    RETURN _id;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.upsert_embedding(
    text, text, vector, text, text, jsonb, text, text, bigint, integer, text, text []
) FROM PUBLIC;

COMMENT ON FUNCTION public.upsert_embedding(
    text, text, vector, text, text, jsonb, text, text, bigint, integer, text, text []
) IS
    'Stores one vector and its document, or brings them up to date; writes nothing where nothing changed. Returns the vector''s id.';
