-- similarity_statement(model_name) -> (statement, dimensions)
--
-- Promises   the statement that similarity_search(query, model_name => ...) amounts to
--            for the ten nearest at most, to be prepared by a client and run again and
--            again: it then is planned once, where the function must plan each time.
--              $1 query vector of the dimensions given   $2 how many rows, up to 10
--            Columns: document id, source_table, source_id, chunk_index, title, content,
--            metadata, similarity. It answers with similarity_search's rows and order
--            as long as all is as it was when it was made. If anything is not (another index,
--            segment, search width or default model; the session's own width; deleted
--            vectors in the index), or the vector has no direction, it gives fewer rows
--            than asked for, or NaN: then call the function, which knows what to do.
--            NULL where there is no such statement: no HNSW index, or one whose search
--            width is more than the session's.
-- Raises     SE003 unknown model.
-- Called by  retrieval.similarity_search in Python, where statements are prepared.
-- Volatility STABLE.

CREATE FUNCTION public.similarity_statement(
    model_name text DEFAULT NULL, OUT statement text, OUT dimensions integer
)
LANGUAGE plpgsql
STABLE
SET search_path = public, pg_temp
AS $$
DECLARE
    _rows CONSTANT integer := 10;
    _model CONSTANT embedding_models := search_model(model_name, NULL);
    _candidates CONSTANT integer := vector_candidate_count(_model, _rows);
    -- What begin_vector_scan would set. Unless pgvector is loaded there is no setting yet.
    _width CONSTANT integer := greatest(coalesce(_model.ef_search, 100), _candidates);
    _set CONSTANT integer := coalesce(current_setting('hnsw.ef_search', true), '40');
BEGIN
    IF _model.index_method <> 'hnsw' OR _width > _set THEN
        RETURN;
    END IF;
    dimensions := _model.dimensions;
    statement := format(
        $statement$
WITH v AS MATERIALIZED (%s)
SELECT d.id, d.source_table, d.source_id, d.chunk_index, d.title, d.content, d.metadata,
    n.similarity
FROM (
    SELECT v.* FROM v
    WHERE EXISTS (
            SELECT FROM public.embedding_models AS m
            WHERE m.name = %L AND m.index_method = 'hnsw' AND m.index_storage = %L
                AND m.ef_search IS NOT DISTINCT FROM %L AND m.visible_segment = %s AND m.dimensions = %s
                AND (m.is_default OR NOT %L)
        )
        AND current_setting('hnsw.ef_search')::integer >= %s
        -- Last: where it no longer holds nothing is scanned, which may be without an index.
        AND (SELECT count(*) FROM v) = %s
    ORDER BY v.similarity DESC, v.id
    LIMIT $2
) AS n
INNER JOIN public.search_documents AS d ON d.id = n.document_id
ORDER BY n.similarity DESC, n.id$statement$,
        replace(
            replace(vector_candidates_sql(_model, NULL, _candidates), '$2', _candidates::text),
            -- The one parameter is cast to two types.
            '$1', '$1::public.vector'),
        _model.name, _model.index_storage, _model.ef_search, _model.visible_segment,
        _model.dimensions, model_name IS NULL, _width, _candidates);
END;
$$;

REVOKE EXECUTE ON FUNCTION public.similarity_statement FROM PUBLIC;

COMMENT ON FUNCTION public.similarity_statement IS
    'What similarity_search amounts to for a model''s ten nearest vectors, for clients that prepare statements.';
