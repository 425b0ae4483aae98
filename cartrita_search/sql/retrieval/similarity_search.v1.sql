-- similarity_search(query_embedding, match_threshold, match_count,
--                   source_filter, user_id_filter, model_name, metadata_filter)
--
-- Promises   the match_count nearest vectors by cosine, nearest first, ties by
--            id; similarity is the exact cosine, in [-1, 1]. With filters still
--            match_count rows, if so many pass. user_id_filter means that
--            person's rows and shared ones; NULL does not restrict.
--            match_threshold drops rows below it.
-- Raises     SE001 dimension, SE002 no direction, SE003 model, SE005
--            match_count, SE006 no vector, SE007 threshold, SE008 filter.
-- Called by  applications; the first four parameters stand in v1's order.
-- Locks      those of a SELECT. Volatility STABLE: one snapshot throughout.
--            Not parallel safe: it sets parameters, and puts them back.

CREATE FUNCTION public.similarity_search(
    query_embedding vector,
    match_threshold double precision DEFAULT -1,
    match_count integer DEFAULT 10,
    source_filter text DEFAULT NULL,
    user_id_filter bigint DEFAULT NULL,
    model_name text DEFAULT NULL,
    metadata_filter jsonb DEFAULT NULL
)
RETURNS TABLE (
    id uuid,
    source_table text,
    source_id text,
    chunk_index integer,
    similarity double precision,
    metadata jsonb
)
LANGUAGE plpgsql
STABLE
PARALLEL UNSAFE
ROWS 10
SET search_path = public, pg_temp
AS $$
DECLARE
    _model embedding_models;
    _candidates integer;
    _before text [];
BEGIN
    IF query_embedding IS NULL THEN
        RAISE EXCEPTION 'similarity_search() needs a query vector.'
            USING ERRCODE = 'SE006', HINT = 'hybrid_search() also searches by text alone.';
    END IF;
    PERFORM check_search_arguments(match_count, match_threshold, metadata_filter);
    _model := search_model(model_name, query_embedding);
    _candidates := vector_candidate_count(_model, match_count);
    _before := begin_vector_scan(_model, _candidates);

    RETURN QUERY EXECUTE format(
        $statement$
SELECT v.id, v.source_table, v.source_id, v.chunk_index, v.similarity, v.metadata
FROM (%s) AS v
WHERE v.similarity >= $6
ORDER BY v.similarity DESC, v.id
LIMIT $7$statement$,
        vector_candidates_sql(
            _model, user_id_filter IS NOT NULL, source_filter IS NOT NULL, metadata_filter IS NOT NULL
        )
    )
    USING query_embedding, _candidates, user_id_filter, source_filter, metadata_filter,
        coalesce(match_threshold, -1), match_count;

    PERFORM end_vector_scan(_model, _before);
END;
$$;

REVOKE EXECUTE ON FUNCTION public.similarity_search FROM PUBLIC;

COMMENT ON FUNCTION public.similarity_search IS
    'The nearest vectors by cosine similarity, answered from the model''s index where it has one.';
