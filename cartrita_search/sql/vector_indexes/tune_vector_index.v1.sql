-- tune_vector_index(model, sample) -> embedding_models
--
-- Promises   the smallest search width tried (ef_search from 40 to 1000, or
--            probes from sqrt(lists) to lists, by steps of a half) at which the
--            index reaches the model's target recall@10 over the sample, or the
--            widest if none does, is stored with the recall measured. Returns
--            the row as stored.
-- Called by  rebuild_vector_indexes.
-- Not parallel safe: it sets parameters, and puts them back.

CREATE FUNCTION public.tune_vector_index(p_model text, p_sample jsonb)
RETURNS embedding_models
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
DECLARE
    _model embedding_models;
    _width integer;
    _widest integer;
BEGIN
    SELECT m.* INTO STRICT _model FROM embedding_models AS m WHERE m.name = p_model;
    _width := CASE _model.index_method WHEN 'hnsw' THEN 40 ELSE ceil(sqrt(_model.ivfflat_lists)) END;
    _widest := CASE _model.index_method WHEN 'hnsw' THEN 1000 ELSE _model.ivfflat_lists END;
    LOOP
        IF _model.index_method = 'hnsw' THEN
            _model.ef_search := _width;
        ELSE
            _model.probes := _width;
        END IF;
        _model.measured_recall := vector_recall(_model, p_sample);
        -- NULL: nothing to measure by, as with a forced index on a few rows.
        EXIT WHEN _width >= _widest OR coalesce(_model.measured_recall >= _model.target_recall, true);
        _width := least(_widest, ceil(_width * 1.5));
    END LOOP;

    UPDATE embedding_models AS m
    SET ef_search = _model.ef_search,
        probes = _model.probes,
        measured_recall = _model.measured_recall
    WHERE m.name = p_model;
    RETURN _model;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.tune_vector_index FROM PUBLIC;

COMMENT ON FUNCTION public.tune_vector_index IS
    'Finds and stores the smallest search width at which a model''s index reaches its target recall.';
