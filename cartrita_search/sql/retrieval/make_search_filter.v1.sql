-- make_search_filter(user, source, sources, metadata, tags, created after)
--     -> search_filter
--
-- Promises   the arguments of a search as one filter: a single source and a list
--            of them are both honoured (only what is in both remains). An empty
--            list of sources admits nothing, an empty list of tags everything.
-- Raises     SE008 for a list with a NULL in it.
-- Called by  similarity_search, hybrid_search.
-- Volatility IMMUTABLE but for the error.

CREATE FUNCTION public.make_search_filter(
    p_user_id bigint,
    p_source text,
    p_sources text [],
    p_metadata jsonb,
    p_tags text [],
    p_created_after timestamptz
)
RETURNS search_filter
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = public, pg_temp
AS $$
BEGIN
    IF array_position(p_sources, NULL) IS NOT NULL OR array_position(p_tags, NULL) IS NOT NULL THEN
        RAISE EXCEPTION 'A list of sources or tags holds a NULL.'
            USING ERRCODE = 'SE008', HINT = 'Leave the list out to search without it.';
    END IF;
    RETURN ROW(
        p_user_id,
        CASE
            WHEN p_source IS NULL THEN p_sources
            WHEN p_sources IS NULL OR p_source = ANY (p_sources) THEN ARRAY[p_source]
            ELSE '{}'
        END,
        p_metadata,
        nullif(p_tags, '{}'),
        p_created_after
    )::search_filter;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.make_search_filter FROM PUBLIC;

COMMENT ON FUNCTION public.make_search_filter IS
    'The filter arguments of a search as one search_filter.';
