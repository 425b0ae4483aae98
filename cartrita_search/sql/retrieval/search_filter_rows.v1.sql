-- search_filter_rows(filter) -> double precision
--
-- Promises   how many documents pass the filter, as the planner estimates: no
--            document is read.
-- Called by  vector_candidates_sql.
-- Volatility VOLATILE in name only: EXPLAIN is not allowed in any other function.
--            Callable from STABLE functions all the same.

CREATE FUNCTION public.search_filter_rows(p_filter search_filter)
RETURNS double precision
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
DECLARE
    _plan jsonb;
BEGIN
    EXECUTE 'EXPLAIN (FORMAT JSON) SELECT FROM search_documents AS d WHERE true'
        || search_filter_sql(p_filter, 'd')
    INTO _plan
    -- The filter is $3 in every statement that applies it.
    USING NULL::text, NULL::text, p_filter;
    RETURN _plan #>> '{0,Plan,Plan Rows}';
END;
$$;

REVOKE EXECUTE ON FUNCTION public.search_filter_rows FROM PUBLIC;

COMMENT ON FUNCTION public.search_filter_rows IS
    'How many documents pass a search_filter, as the planner estimates.';
