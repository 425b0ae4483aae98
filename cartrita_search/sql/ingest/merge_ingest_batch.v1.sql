-- merge_ingest_batch(model, dimensions, deferred, replace_owner) -> one row
--
-- Promises   the rows of the temporary table ingest_batch are in search_documents
--            and embeddings, whatever was there of them before. Rows with a title are
--            documents, with a vector or without; rows without (title NULL) are
--            vectors of documents that should be stored already.
--            Of a stored document a NULL language, and unless replace_owner a NULL
--            owner, keeps what is stored. What is unchanged is neither written nor
--            locked. A content_hash left NULL is the stored document's. created_at is a
--            new document's alone; NULL is now.
--            Returned are counts of rows: inserted (a new document, or a new vector
--            where only vectors were given), updated (the document, its vector or
--            both), new_vectors; and missing, the positions of vectors without a
--            document, which were left out. All others were unchanged.
--            deferred: new vectors go to the segment after the visible one, if the
--            model has an index, for rebuild_vector_indexes() to take in later.
-- Raises     SE001 when the model is registered with other dimensions, SE003 no
--            default model; the rest is the caller's to have checked.
-- Called by  ingest.py, once a batch, after COPY; see there for the table. The import
--            of v1 rows, after an INSERT on the server.
-- Locks      row locks on what is written. New documents are inserted first, then all
--            documents to be changed are locked, both in the order of position. Where
--            that is the order of their keys two batches cannot deadlock: who waits
--            for a document's insertion holds no row that others see.
-- Volatility VOLATILE.

CREATE FUNCTION public.merge_ingest_batch(
    p_model text,
    p_dimensions integer,
    p_deferred boolean,
    p_replace_owner boolean
)
RETURNS TABLE (inserted integer, updated integer, new_vectors integer, missing integer [])
LANGUAGE plpgsql
SET search_path = public, pg_temp
-- Rows of the tables are to be looked up by their keys, one for each of the batch: the
-- planner, which knows nothing of the temporary table, would read all of them.
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
-- For the vectors that embeddings_check_inserted() looks at.
SET work_mem = '64MB'
AS $$
#variable_conflict use_column
DECLARE
    _model embedding_models;
    _language CONSTANT text := default_language()::regconfig::text;
    _here xid;
    _row record;
    -- By position: whether the document, whether the vector is to be written.
    _documents boolean [];
    _vectors boolean [];
    _ignored text;
BEGIN
    IF p_dimensions IS NOT NULL THEN
        _model := register_embedding_model(p_model, p_dimensions);
        IF _model.dimensions <> p_dimensions THEN
            RAISE EXCEPTION 'The vectors have % dimensions, but model "%" has %.',
                p_dimensions, _model.name, _model.dimensions
                USING ERRCODE = 'SE001', HINT = 'Nothing was changed. Name the model of these vectors.';
        END IF;
    END IF;

    -- Both keyword columns are computed here, for all rows in one go. Overlong
    -- documents are left to search_documents_keywords(), as are updates.
    _ignored := set_config('cartrita_search.merging', 'on', true);
    WITH stored AS (
        INSERT INTO search_documents (
            source_table, source_id, chunk_index, user_id, title, content, tags, language,
            metadata, content_hash, created_at, search_vector, keyword_vector
        )
        SELECT b.source_table, b.source_id, b.chunk_index, b.user_id, b.title, b.content, b.tags,
            b.language, b.metadata - 'keyword_index', b.content_hash,
            coalesce(b.created_at, clock_timestamp()), v.search_vector, k.weights
        FROM (
            SELECT b.position, b.source_table, b.source_id, b.chunk_index, b.user_id, b.title,
                b.content, b.tags, b.metadata, b.content_hash, b.created_at,
                coalesce(b.language, _language) AS language
            FROM pg_temp.ingest_batch AS b
            WHERE b.title IS NOT NULL
                AND NOT EXISTS (
                    SELECT FROM search_documents AS d
                    WHERE d.source_table = b.source_table AND d.source_id = b.source_id
                        AND d.chunk_index = b.chunk_index)
            ORDER BY b.position
        ) AS b
        CROSS JOIN LATERAL (
            SELECT
                CASE
                    WHEN octet_length(b.title) + octet_length(b.content) <= 300000
                        AND length(b.title) <= 10000
                        THEN setweight(to_tsvector(b.language::regconfig, keyword_text(b.title)), 'A')
                            || to_tsvector(b.language::regconfig, keyword_text(b.content))
                END AS search_vector,
                (SELECT c.average_length FROM keyword_corpora AS c WHERE c.language = b.language)
                    AS average_length
            -- Or the planner would compute it anew wherever it is used.
            OFFSET 0
        ) AS v
        LEFT JOIN LATERAL keyword_weights(v.search_vector, v.average_length) AS k
            ON length(v.search_vector) <= 16000
        ORDER BY b.position
        ON CONFLICT ON CONSTRAINT search_documents_source_key DO NOTHING
        RETURNING xmin
    )
    -- What this statement has written is told from what was there by its xmin.
    SELECT count(*), min(s.xmin::text)::xid INTO inserted, _here FROM stored AS s;
    _ignored := set_config('cartrita_search.merging', '', true);

    -- One pass of locks over all that is to be changed.
    updated := 0;
    new_vectors := 0;
    SELECT array_fill(false, ARRAY[count(*)::integer]) INTO _documents FROM pg_temp.ingest_batch;
    _vectors := _documents;
    FOR _row IN
        SELECT b.position, w.document, w.vector, b.title IS NULL AS vector_only,
            e.id IS NULL AS without_vector, d.xmin IS NOT DISTINCT FROM _here AS is_new
        FROM pg_temp.ingest_batch AS b
        INNER JOIN search_documents AS d
            ON d.source_table = b.source_table AND d.source_id = b.source_id
                AND d.chunk_index = b.chunk_index
        -- Not "=": of a new model the planner expects no rows, and might go through all
        -- of them, by an index that begins with the model, for each document.
        LEFT JOIN embeddings AS e
            ON e.document_id = d.id AND e.embedding_model IS NOT DISTINCT FROM _model.name
        CROSS JOIN LATERAL (
            SELECT
                coalesce(
                    b.title IS NOT NULL AND (
                        d.content_hash <> b.content_hash
                        -- A line feed may have moved between title and content.
                        OR d.title <> b.title
                        OR d.tags <> b.tags
                        OR d.language <> b.language
                        OR d.user_id IS DISTINCT FROM b.user_id
                        AND (p_replace_owner OR b.user_id IS NOT NULL)
                        -- 'keyword_index' is our own note on an overlong document.
                        OR d.metadata - 'keyword_index' <> b.metadata - 'keyword_index'
                    ),
                    false) AS document,
                b.embedding IS NOT NULL AND (
                    e.id IS NULL
                    OR e.embedding <> b.embedding
                    OR e.content_hash <> coalesce(b.content_hash, d.content_hash)
                ) AS vector
        ) AS w
        WHERE w.document OR w.vector
        ORDER BY b.position
        FOR NO KEY UPDATE OF d
    LOOP
        _documents[_row.position] := _row.document;
        _vectors[_row.position] := _row.vector;
        IF _row.vector AND _row.without_vector THEN
            new_vectors := new_vectors + 1;
        END IF;
        IF _row.vector_only AND _row.without_vector THEN
            inserted := inserted + 1;
        ELSIF NOT _row.is_new THEN
            updated := updated + 1;
        END IF;
    END LOOP;

    UPDATE search_documents AS d
    SET title = b.title,
        content = b.content,
        tags = b.tags,
        language = coalesce(b.language, d.language),
        user_id = CASE WHEN p_replace_owner THEN b.user_id ELSE coalesce(b.user_id, d.user_id) END,
        metadata = b.metadata,
        content_hash = b.content_hash
    FROM pg_temp.ingest_batch AS b
    WHERE _documents[b.position]
        AND d.source_table = b.source_table AND d.source_id = b.source_id
        AND d.chunk_index = b.chunk_index;

    INSERT INTO embeddings AS e (
        document_id, source_table, source_id, chunk_index, user_id, metadata,
        embedding_model, embedding, content_hash, segment
    )
    SELECT d.id, d.source_table, d.source_id, d.chunk_index, d.user_id, d.metadata,
        _model.name, b.embedding, coalesce(b.content_hash, d.content_hash),
        CASE WHEN p_deferred AND _model.index_method <> 'exact' THEN _model.visible_segment + 1 ELSE 0 END
    FROM pg_temp.ingest_batch AS b
    INNER JOIN search_documents AS d
        ON d.source_table = b.source_table AND d.source_id = b.source_id
            AND d.chunk_index = b.chunk_index
    WHERE _vectors[b.position]
    ON CONFLICT ON CONSTRAINT embeddings_document_model_key DO UPDATE
    SET embedding = excluded.embedding,
        content_hash = excluded.content_hash;

    SELECT coalesce(array_agg(b.position ORDER BY b.position), '{}') INTO missing
    FROM pg_temp.ingest_batch AS b
    WHERE b.title IS NULL
        AND NOT EXISTS (
            SELECT FROM search_documents AS d
            WHERE d.source_table = b.source_table AND d.source_id = b.source_id
                AND d.chunk_index = b.chunk_index);
    RETURN NEXT;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.merge_ingest_batch FROM PUBLIC;

COMMENT ON FUNCTION public.merge_ingest_batch IS
    'Brings documents and vectors up to the rows of the temporary table ingest_batch, in one pass.';
