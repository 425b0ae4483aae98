-- check_search_page(match_count, result_offset) -> void
--
-- Promises   returns quietly, or raises SE005 for a page that begins before the
--            first result or ends after the ten-thousandth.
-- Called by  similarity_search, hybrid_search, after check_search_arguments.
-- Volatility IMMUTABLE but for the error.

CREATE FUNCTION public.check_search_page(p_match_count integer, p_result_offset integer)
RETURNS void
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = public, pg_temp
AS $$
BEGIN
    IF p_result_offset IS NULL OR p_result_offset NOT BETWEEN 0 AND 10000 - p_match_count THEN
        RAISE EXCEPTION 'result_offset must be between 0 and 10000 less match_count, %; it is %.',
            10000 - p_match_count, coalesce(p_result_offset::text, 'NULL')
            USING ERRCODE = 'SE005', HINT = 'Results are ranked up to the ten-thousandth; narrow the search instead.';
    END IF;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.check_search_page FROM PUBLIC;

COMMENT ON FUNCTION public.check_search_page IS
    'Raises SE005 for a page outside the first 10,000 results.';
