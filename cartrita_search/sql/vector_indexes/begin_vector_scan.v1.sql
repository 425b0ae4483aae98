-- begin_vector_scan(model, candidates) -> text[]
--
-- Promises   sets the search width and iterative scan that the model's index
--            needs, for this transaction, and returns what was set before, for
--            end_vector_scan to put back. NULL where the model has no index.
-- Called by  similarity_search, hybrid_search, vector_recall, right before and
--            after their one statement.
-- Volatility VOLATILE by nature (it sets parameters), and callable from STABLE
--            functions all the same.
--
-- Why not SET clauses on the functions: the width is the model's, so no
-- constant; and only a superuser may create such a clause unless the session
-- has loaded pgvector. An error in between needs no cleaning up: set_config with
-- is_local is undone with the (sub)transaction that fails.
--
-- A width below the number of candidates caps the result; 1000 is pgvector's
-- maximum, beyond which the iterative scan goes on by itself.

CREATE FUNCTION public.begin_vector_scan(p_model embedding_models, p_candidates integer)
RETURNS text []
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
DECLARE
    _before text [];
    _ignored text;
BEGIN
    IF p_model.index_method = 'hnsw' THEN
        _before := ARRAY[current_setting('hnsw.ef_search'), current_setting('hnsw.iterative_scan')];
        _ignored := set_config(
            'hnsw.ef_search',
            least(1000, greatest(coalesce(p_model.ef_search, 100), p_candidates))::text, true);
        _ignored := set_config('hnsw.iterative_scan', 'relaxed_order', true);
    ELSIF p_model.index_method = 'ivfflat' THEN
        _before := ARRAY[current_setting('ivfflat.probes'), current_setting('ivfflat.iterative_scan')];
        _ignored := set_config(
            'ivfflat.probes',
            coalesce(p_model.probes, ceil(sqrt(p_model.ivfflat_lists))::integer, 10)::text, true);
        _ignored := set_config('ivfflat.iterative_scan', 'relaxed_order', true);
    END IF;
    RETURN _before;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.begin_vector_scan FROM PUBLIC;

COMMENT ON FUNCTION public.begin_vector_scan IS
    'Sets search width and iterative scan for a model''s index; returns the former values.';
