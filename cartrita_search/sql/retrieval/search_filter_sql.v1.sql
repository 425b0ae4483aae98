-- search_filter_sql(filter, table alias) -> text
--
-- Promises   the conditions of a filter on search_documents under that alias, each
--            after an ' AND '; '' for a filter that restricts nothing. The filter
--            itself is parameter $3 of the statement: its values are constants to
--            the planner, which weighs the indexes on them.
-- Called by  hybrid_search for the keyword leg; vector_candidates_sql.
-- Volatility STABLE, as format() is; the body is bound at creation.

CREATE FUNCTION public.search_filter_sql(p_filter search_filter, p_alias text)
RETURNS text
LANGUAGE sql
STABLE
PARALLEL SAFE
RETURN concat(
    CASE
        WHEN p_filter.user_id IS NOT NULL
            THEN format(' AND (%1$I.user_id = ($3).user_id OR %1$I.user_id IS NULL)', p_alias)
    END,
    CASE
        WHEN p_filter.sources IS NOT NULL
            THEN format(' AND %I.source_table = ANY (($3).sources)', p_alias)
    END,
    CASE
        WHEN p_filter.metadata IS NOT NULL
            THEN format(' AND %I.metadata @> ($3).metadata', p_alias)
    END,
    CASE
        WHEN p_filter.tags IS NOT NULL
            THEN format(' AND %I.tags @> ($3).tags', p_alias)
    END,
    CASE
        WHEN p_filter.created_after IS NOT NULL
            THEN format(' AND %I.created_at > ($3).created_after', p_alias)
    END
);

REVOKE EXECUTE ON FUNCTION public.search_filter_sql FROM PUBLIC;

COMMENT ON FUNCTION public.search_filter_sql IS
    'The conditions of a search_filter on search_documents, as SQL text.';
