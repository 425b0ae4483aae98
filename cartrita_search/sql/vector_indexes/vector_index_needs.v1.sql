-- vector_index_needs(plan) -> text[]
--
-- Promises   a sentence for each reason to rebuild the model's index by that plan; empty
--            when there is none: the plan changed, the index is missing, invalid or not
--            one that searches can use, the vectors became many more or fewer, many rows
--            are dead, recall@10 is below the target or was never measured, vectors of a
--            large load wait for it. Thresholds: search_settings.rebuild_growth and
--            rebuild_dead_share.
-- Called by  vector_index_status; rebuild_vector_indexes --if-needed.
-- Cost       counts the vectors put aside: reads the model's rows.
-- Volatility STABLE.

CREATE FUNCTION public.vector_index_needs(p_plan vector_index_choice)
RETURNS text []
LANGUAGE plpgsql
STABLE
SET search_path = public, pg_temp
AS $$
DECLARE
    _settings search_settings;
    _model embedding_models;
    _index record;
    _dead record;
    _aside bigint;
    _needs text [] := '{}';
BEGIN
    SELECT s.* INTO _settings FROM search_settings AS s;
    SELECT m.* INTO STRICT _model FROM embedding_models AS m WHERE m.name = p_plan.model_name;
    SELECT f.* INTO _index FROM vector_index_facts(_model.name) AS f;

    IF p_plan.method = 'exact' THEN
        IF _index.index_oid IS NOT NULL OR _model.index_method <> 'exact' THEN
            _needs := _needs || format('The plan is an exact scan, and there is an index (%s).',
                coalesce(_index.method, _model.index_method));
        END IF;
    ELSIF _index.index_oid IS NULL THEN
        _needs := _needs || CASE _model.index_method
            WHEN 'exact' THEN format('The plan is %s on %s, and there is no index.', p_plan.method, p_plan.storage)
            ELSE 'Its index is missing.'
        END;
    ELSE
        IF NOT _index.is_valid THEN
            _needs := _needs || 'Its index is invalid.'::text;
        END IF;
        IF _index.dimensions <> _model.dimensions THEN
            _needs := _needs || format('Its index was built for %s dimensions; the model has %s.',
                _index.dimensions, _model.dimensions);
        END IF;
        IF NOT _index.of_model OR _index.segment <> _model.visible_segment
            OR (_index.method, _index.storage) IS DISTINCT FROM (_model.index_method, _model.index_storage) THEN
            _needs := _needs || 'Searches cannot use its index: it was not put in place by a rebuild.'::text;
        ELSIF (_index.method, _index.storage) IS DISTINCT FROM (p_plan.method, p_plan.storage) THEN
            _needs := _needs || format('The plan is %s on %s, the index is %s on %s.',
                p_plan.method, p_plan.storage, _index.method, _index.storage);
        ELSIF p_plan.method = 'hnsw'
            AND (_model.hnsw_m, _model.hnsw_ef_construction) IS DISTINCT FROM (p_plan.m, p_plan.ef_construction) THEN
            _needs := _needs || format('The plan has m %s, ef_construction %s; the index has %s, %s.',
                p_plan.m, p_plan.ef_construction, _model.hnsw_m, _model.hnsw_ef_construction);
        END IF;
        IF abs(p_plan.row_count - _model.indexed_rows) > _settings.rebuild_growth * _model.indexed_rows THEN
            _needs := _needs || format('It was built on %s vectors; there are %s now.',
                _model.indexed_rows, p_plan.row_count);
        END IF;
        SELECT t.n_dead_tup AS rows, t.n_dead_tup::double precision / nullif(t.n_dead_tup + t.n_live_tup, 0) AS share
        INTO _dead
        FROM pg_stat_all_tables AS t WHERE t.relid = 'public.embeddings'::regclass;
        IF _dead.rows > 1000 AND _dead.share > _settings.rebuild_dead_share THEN
            _needs := _needs || format('%s %% of the rows of embeddings are dead.', round(100 * _dead.share));
        END IF;
        IF _model.measured_recall < _model.target_recall THEN
            _needs := _needs || format('Its recall@10 was measured as %s, below the target %s.',
                round(_model.measured_recall::numeric, 3), _model.target_recall);
        ELSIF _model.measured_recall IS NULL AND p_plan.row_count > 10 THEN
            _needs := _needs || 'Its recall was never measured.'::text;
        END IF;
    END IF;

    -- An assignment, unlike SELECT INTO, is done in parallel.
    _aside := (
        SELECT count(*) FROM embeddings AS e
        WHERE e.embedding_model = _model.name AND e.segment > _model.visible_segment
    );
    IF _aside > 0 THEN
        _needs := _needs || format('%s vectors of a large load are not found before it is rebuilt.', _aside);
    END IF;
    RETURN _needs;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.vector_index_needs FROM PUBLIC;

COMMENT ON FUNCTION public.vector_index_needs IS
    'Why a model''s vector index should be rebuilt by a plan, a sentence a reason; empty if it should not.';
