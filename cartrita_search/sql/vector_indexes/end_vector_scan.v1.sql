-- end_vector_scan(model, before) -> void
--
-- Promises   the parameters that begin_vector_scan changed have their former
--            values again: nothing leaks into the caller's transaction.
-- Called by  whoever called begin_vector_scan, as soon as its rows are read.

CREATE FUNCTION public.end_vector_scan(p_model embedding_models, p_before text [])
RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
DECLARE
    _ignored text;
BEGIN
    IF p_model.index_method = 'hnsw' THEN
        _ignored := set_config('hnsw.ef_search', p_before[1], true);
        _ignored := set_config('hnsw.iterative_scan', p_before[2], true);
    ELSIF p_model.index_method = 'ivfflat' THEN
        _ignored := set_config('ivfflat.probes', p_before[1], true);
        _ignored := set_config('ivfflat.iterative_scan', p_before[2], true);
    END IF;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.end_vector_scan FROM PUBLIC;

COMMENT ON FUNCTION public.end_vector_scan IS
    'Puts back what begin_vector_scan changed.';
