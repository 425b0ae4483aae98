-- hybrid_search_for_user(user_id, query_text, query_embedding, match_count,
--                        source_filter, model_name, metadata_filter, fusion,
--                        query_language, vector_weight, keyword_weight,
--                        similarity_threshold, source_filters, tag_filter,
--                        created_after, result_offset)
--
-- Promises   hybrid_search over that person's and shared documents, with the
--            weights, threshold and number of results of effective_retrieval_config;
--            where there is none 0.7, 0.3, none and 10. An argument given here
--            overrides what is stored.
-- Raises     as hybrid_search; SE008 without a user.
-- Called by  applications.
-- Volatility STABLE; not parallel safe, as hybrid_search.

CREATE FUNCTION public.hybrid_search_for_user(
    p_user_id bigint,
    query_text text,
    query_embedding vector,
    match_count integer DEFAULT NULL,
    source_filter text DEFAULT NULL,
    model_name text DEFAULT NULL,
    metadata_filter jsonb DEFAULT NULL,
    fusion text DEFAULT 'weighted',
    query_language text DEFAULT NULL,
    vector_weight double precision DEFAULT NULL,
    keyword_weight double precision DEFAULT NULL,
    similarity_threshold double precision DEFAULT NULL,
    source_filters text [] DEFAULT NULL,
    tag_filter text [] DEFAULT NULL,
    created_after timestamptz DEFAULT NULL,
    result_offset integer DEFAULT 0
)
RETURNS TABLE (
    id uuid,
    source_table text,
    source_id text,
    chunk_index integer,
    title text,
    content text,
    metadata jsonb,
    hybrid_score double precision,
    vector_similarity double precision,
    keyword_score double precision,
    matched_by text,
    vector_rank integer,
    keyword_rank integer,
    keyword_share double precision,
    effective_vector_weight double precision,
    effective_keyword_weight double precision
)
LANGUAGE plpgsql
STABLE
PARALLEL UNSAFE
ROWS 10
SET search_path = public, pg_temp
AS $$
DECLARE
    _config retrieval_configs;
BEGIN
    IF p_user_id IS NULL THEN
        RAISE EXCEPTION 'hybrid_search_for_user() needs a user id.'
            USING ERRCODE = 'SE008', HINT = 'hybrid_search() searches without one.';
    END IF;
    _config := effective_retrieval_config(p_user_id);

    RETURN QUERY SELECT h.*
    FROM hybrid_search(
        query_text,
        query_embedding,
        vector_weight => coalesce(vector_weight, _config.vector_weight, 0.7),
        keyword_weight => coalesce(keyword_weight, _config.keyword_weight, 0.3),
        similarity_threshold => coalesce(
            similarity_threshold, _config.similarity_threshold, -1),
        match_count => coalesce(match_count, _config.max_results, 10),
        user_id_filter => p_user_id,
        source_filter => source_filter,
        model_name => model_name,
        metadata_filter => metadata_filter,
        fusion => fusion,
        query_language => query_language,
        source_filters => source_filters,
        tag_filter => tag_filter,
        created_after => created_after,
        result_offset => result_offset
    ) AS h;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.hybrid_search_for_user FROM PUBLIC;

COMMENT ON FUNCTION public.hybrid_search_for_user IS
    'hybrid_search over one person''s and shared documents, with the weights of their active retrieval_configs row.';
