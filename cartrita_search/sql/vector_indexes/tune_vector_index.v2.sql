-- tune_vector_index(plan, index name, sample, target) -> embedding_models
--
-- Promises   the model's row as it is to be once the index of that name, built by that
--            plan, is swapped in: with the smallest search width tried (ef_search from
--            40 to 1000, or probes from sqrt(lists) to lists, by steps of a half) at
--            which both halves of the sample (see vector_recall_sample) reach the
--            target recall@10, or the widest if none does. One half chooses the width;
--            measured_recall is that of the other, which did not. target NULL is the
--            model's own. Writes nothing.
--            measured_recall is NULL where there is nothing to measure by, or where the
--            planner would not use that very index.
-- Called by  rebuild_vector_indexes, and the command of that name, while the former
--            index is in place: the row's visible_segment is one that only the new
--            index covers.
-- Not parallel safe: it sets parameters, and puts them back.

CREATE FUNCTION public.tune_vector_index(
    p_plan vector_index_choice,
    p_index_name text,
    p_sample jsonb,
    p_target double precision DEFAULT NULL
)
RETURNS embedding_models
LANGUAGE plpgsql
SET search_path = public, pg_temp
-- The index is measured, also where there are so few rows that a scan would be cheaper.
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
AS $$
DECLARE
    _model embedding_models;
    _explained json;
    _choosing jsonb;
    _held_out jsonb;
    _width integer;
    _widest integer;
BEGIN
    SELECT m.* INTO STRICT _model FROM embedding_models AS m WHERE m.name = p_plan.model_name;
    _model.target_recall := coalesce(p_target, _model.target_recall);
    _model.index_method := p_plan.method;
    _model.index_storage := p_plan.storage;
    _model.hnsw_m := p_plan.m;
    _model.hnsw_ef_construction := p_plan.ef_construction;
    _model.ivfflat_lists := p_plan.lists;
    _model.ef_search := NULL;
    _model.probes := NULL;
    _model.measured_recall := CASE p_plan.method WHEN 'exact' THEN 1 END;
    _model.indexed_rows := p_plan.row_count;
    -- What vector_index_sql() has taken in.
    _model.visible_segment := _model.visible_segment + 1;
    IF p_plan.method = 'exact' THEN
        RETURN _model;
    END IF;

    SELECT
        coalesce(jsonb_agg(s.value) FILTER (WHERE s.ordinality % 2 = 1), '[]'),
        coalesce(jsonb_agg(s.value) FILTER (WHERE s.ordinality % 2 = 0), '[]')
    INTO _choosing, _held_out
    FROM jsonb_array_elements(p_sample) WITH ORDINALITY AS s (value, ordinality);

    _width := CASE p_plan.method WHEN 'hnsw' THEN 40 ELSE ceil(sqrt(p_plan.lists)) END;
    _widest := CASE p_plan.method WHEN 'hnsw' THEN 1000 ELSE p_plan.lists END;
    EXECUTE concat('EXPLAIN (FORMAT JSON) ', vector_candidates_sql(_model, NULL, 10)) INTO _explained
    USING array_fill(1, ARRAY[p_plan.dimensions])::vector, 10, NULL::search_filter;
    IF NOT jsonb_path_exists(
        _explained::jsonb, '$.**."Index Name" ? (@ == $name)', jsonb_build_object('name', p_index_name)
    ) THEN
        _choosing := '[]';
    END IF;
    LOOP
        IF p_plan.method = 'hnsw' THEN
            _model.ef_search := _width;
        ELSE
            _model.probes := _width;
        END IF;
        _model.measured_recall := vector_recall(_model, _choosing);
        EXIT WHEN _model.measured_recall IS NULL;
        IF _width >= _widest OR _model.measured_recall >= _model.target_recall THEN
            _model.measured_recall := coalesce(vector_recall(_model, _held_out), _model.measured_recall);
            EXIT WHEN _width >= _widest OR _model.measured_recall >= _model.target_recall;
        END IF;
        _width := least(_widest, ceil(_width * 1.5));
    END LOOP;
    RETURN _model;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.tune_vector_index FROM PUBLIC;

COMMENT ON FUNCTION public.tune_vector_index IS
    'A model''s row with the smallest search width at which a new index reaches the target recall, measured before the swap.';
