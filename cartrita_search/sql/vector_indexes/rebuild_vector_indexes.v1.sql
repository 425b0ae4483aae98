-- rebuild_vector_indexes(model) -> text
--
-- Promises   the model (NULL: every model) has the index that vector_index_plan
--            calls for, freshly built, measured and tuned: ef_search or probes
--            is the smallest tried that reaches the model's target recall@10,
--            and is stored with the measured figure for every search to use.
--            Keyword statistics are refreshed. Returns a line a model.
--            All in one transaction: whatever fails, everything is as before.
-- Raises     SE003 unknown model, SE010 when another rebuild is running.
-- Called by  operators, as in v1.
-- Locks      SHARE on embeddings while it builds: writers wait, readers do not.
--            The swap at the end holds ACCESS EXCLUSIVE until commit; between the
--            two lies only the measuring, some tens of milliseconds a model.
--            The former index serves until then: no search is without one.
--            The command of the same name does not block writers.

CREATE FUNCTION public.rebuild_vector_indexes(model text DEFAULT NULL)
RETURNS text
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
DECLARE
    -- 'CSRI' as a number: one rebuild at a time, whoever runs it.
    _lock CONSTANT bigint := 1129533001;
    _model embedding_models;
    _plan vector_index_choice;
    _plans vector_index_choice [] := '{}';
    _samples jsonb := '{}';
    _name text;
    _width integer;
    _widest integer;
    _report text [] := '{}';
BEGIN
    IF NOT pg_try_advisory_xact_lock(_lock) THEN
        RAISE EXCEPTION 'Another session is rebuilding vector indexes.'
            USING ERRCODE = 'SE010', HINT = 'Nothing was changed. Try again when it has finished.';
    END IF;
    IF model IS NOT NULL AND NOT EXISTS (SELECT FROM embedding_models AS m WHERE m.name = model) THEN
        RAISE EXCEPTION 'There is no embedding model "%".', left(model, 200)
            USING ERRCODE = 'SE003', HINT = 'SELECT name FROM embedding_models lists them.';
    END IF;
    -- The counts that the plan is made from must not move under it.
    LOCK TABLE embeddings IN SHARE MODE;
    IF to_regprocedure('refresh_keyword_statistics()') IS NOT NULL THEN
        PERFORM refresh_keyword_statistics();
    END IF;

    -- First all that takes long, under a lock that readers do not feel.
    FOR _model IN
        SELECT m.* FROM embedding_models AS m
        WHERE model IS NULL OR m.name = model
        ORDER BY m.name
    LOOP
        _plan := vector_index_plan(_model.name);
        _plans := _plans || _plan;
        IF _plan.method <> 'exact' THEN
            _samples := _samples || jsonb_build_object(_model.name, vector_recall_sample(_model.name));
            EXECUTE vector_index_sql(_plan, vector_index_name(_model.name) || '__new');
        END IF;
    END LOOP;

    -- Then the swaps, and the measuring of what is now in place.
    FOREACH _plan IN ARRAY _plans LOOP
        _name := vector_index_name(_plan.model_name);
        EXECUTE format('DROP INDEX IF EXISTS public.%I', _name);
        UPDATE embedding_models AS m
        SET index_method = _plan.method,
            index_storage = _plan.storage,
            hnsw_m = _plan.m,
            hnsw_ef_construction = _plan.ef_construction,
            ivfflat_lists = _plan.lists,
            ef_search = NULL,
            probes = NULL,
            measured_recall = CASE _plan.method WHEN 'exact' THEN 1 END,
            indexed_rows = _plan.row_count,
            indexed_at = clock_timestamp()
        WHERE m.name = _plan.model_name
        RETURNING m.* INTO _model;

        IF _plan.method = 'exact' THEN
            _report := _report || format(
                '%s: exact scan, no index; %s vectors. %s', _model.name, _plan.row_count, _plan.reason);
            CONTINUE;
        END IF;
        EXECUTE format('ALTER INDEX public.%I RENAME TO %I', _name || '__new', _name);

        _width := CASE _plan.method WHEN 'hnsw' THEN 40 ELSE ceil(sqrt(_plan.lists)) END;
        _widest := CASE _plan.method WHEN 'hnsw' THEN 1000 ELSE _plan.lists END;
        LOOP
            IF _plan.method = 'hnsw' THEN
                _model.ef_search := _width;
            ELSE
                _model.probes := _width;
            END IF;
            _model.measured_recall := vector_recall(_model, _samples -> _model.name);
            EXIT WHEN _model.measured_recall >= _model.target_recall OR _width >= _widest;
            _width := least(_widest, ceil(_width * 1.5));
        END LOOP;
        UPDATE embedding_models AS m
        SET ef_search = _model.ef_search,
            probes = _model.probes,
            measured_recall = _model.measured_recall
        WHERE m.name = _model.name;

        _report := _report || format(
            '%s: %s on %s, %s; %s vectors; recall@10 %s at %s %s (target %s%s). %s',
            _model.name,
            CASE _plan.method WHEN 'hnsw' THEN 'HNSW' ELSE 'IVFFlat' END,
            _plan.storage,
            CASE _plan.method
                WHEN 'hnsw' THEN format('m %s, ef_construction %s', _plan.m, _plan.ef_construction)
                ELSE format('%s lists', _plan.lists)
            END,
            _plan.row_count,
            round(_model.measured_recall::numeric, 3),
            CASE _plan.method WHEN 'hnsw' THEN 'ef_search' ELSE 'probes' END,
            _width,
            _model.target_recall,
            CASE WHEN _model.measured_recall < _model.target_recall THEN ', NOT reached' END,
            _plan.reason);
    END LOOP;

    ANALYZE public.embeddings;
    RETURN coalesce(nullif(array_to_string(_report, E'\n'), ''), 'No embedding model is registered: nothing to index.');
END;
$$;

REVOKE EXECUTE ON FUNCTION public.rebuild_vector_indexes FROM PUBLIC;

COMMENT ON FUNCTION public.rebuild_vector_indexes IS
    'Builds, measures and swaps in the vector index that each model''s plan calls for, in one transaction; returns a report.';
