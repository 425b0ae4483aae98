-- check_search_arguments(match_count, threshold, metadata filter) -> void
--
-- Promises   returns quietly, or raises SE005 (match_count), SE007 (threshold),
--            SE008 (a metadata filter that is not an object).
-- Called by  similarity_search, hybrid_search.
-- Volatility IMMUTABLE but for the error.

CREATE FUNCTION public.check_search_arguments(
    p_match_count integer,
    p_threshold double precision,
    p_metadata_filter jsonb
)
RETURNS void
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = public, pg_temp
AS $$
BEGIN
    -- 10,000 results are an export, not a search; a slip of the hand should not
    -- sort a whole table.
    IF p_match_count IS NULL OR p_match_count NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'match_count must be between 1 and 10000, not %.', coalesce(p_match_count::text, 'NULL')
            USING ERRCODE = 'SE005', HINT = 'Ask for fewer results, or read the table itself for an export.';
    END IF;
    -- NaN compares greater than every number, so BETWEEN refuses it too.
    IF p_threshold NOT BETWEEN -1 AND 1 THEN
        RAISE EXCEPTION 'The similarity threshold must be between -1 and 1, not %.', p_threshold
            USING ERRCODE = 'SE007', HINT = 'It is a cosine: 1 is the same direction, 0 unrelated; -1 admits all.';
    END IF;
    IF jsonb_typeof(p_metadata_filter) <> 'object' THEN
        RAISE EXCEPTION 'metadata_filter must be a JSON object, not %.', jsonb_typeof(p_metadata_filter)
            USING ERRCODE = 'SE008', HINT = 'For example {"kind": "note"}: rows whose metadata contains it.';
    END IF;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.check_search_arguments FROM PUBLIC;

COMMENT ON FUNCTION public.check_search_arguments IS
    'Raises SE005, SE007 or SE008 for a result count, threshold or metadata filter that cannot be used.';
