-- rebuild_vector_indexes(model) -> text
--
-- Promises   the model (NULL: every model) has the index that vector_index_plan
--            calls for, freshly built, measured and tuned: ef_search or probes
--            is the smallest tried that reaches the model's target recall@10,
--            and is stored with the measured figure for every search to use.
--            Where none reaches it the index is swapped in all the same, searched
--            as widely as it can be, and the report says NOT reached.
--            Vectors that a large load left for later (embeddings.segment) are in
--            it, and found from the commit on.
--            An index is built in the memory that its plan counts on, also where that is
--            more than the session's maintenance_work_mem.
--            Keyword statistics are refreshed. Returns a line a model.
--            All in one transaction: whatever fails, everything is as before.
-- Raises     SE003 unknown model, SE010 when another rebuild is running or has
--            left an index behind.
-- Called by  operators, as in v1.
-- Locks      SHARE on embeddings and SHARE ROW EXCLUSIVE on search_documents until
--            commit: writers wait, readers do not. The swap is two renames, which
--            no reader feels either. Only dropping the former indexes, when all
--            else is done, needs ACCESS EXCLUSIVE, and that is not waited for:
--            everybody would queue behind it, and a transaction that has read and
--            now waits to write would deadlock with it. If it cannot be had, the
--            former index stays under the name <index>__old, harmless but for the
--            cost of keeping it up, and the report says so.
--            No search is ever without an index.
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
    _models embedding_models [] := '{}';
    _sample jsonb;
    _name text;
    _memory CONSTANT text := current_setting('maintenance_work_mem');
    _workers CONSTANT text := current_setting('max_parallel_maintenance_workers');
    _ignored text;
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
    -- To drop a leftover here would lock readers out for as long as we build.
    SELECT c.relname INTO _name
    FROM pg_class AS c
    INNER JOIN embedding_models AS m
        ON c.relname IN (vector_index_name(m.name) || '__new', vector_index_name(m.name) || '__old')
    WHERE c.relnamespace = 'public'::regnamespace AND (model IS NULL OR m.name = model)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'Index % is left from another rebuild.', _name
            USING ERRCODE = 'SE010',
                HINT = format('Nothing was changed. manage.py rebuild_vector_indexes clears it away; or drop it and try again: DROP INDEX CONCURRENTLY %I;', _name);
    END IF;

    -- In the order in which writers take them. The counts that the plan is made
    -- from must not move under it.
    LOCK TABLE search_documents IN SHARE ROW EXCLUSIVE MODE;
    LOCK TABLE embeddings IN SHARE MODE;
    IF to_regprocedure('refresh_keyword_statistics()') IS NOT NULL THEN
        PERFORM refresh_keyword_statistics();
    END IF;

    -- First all that takes long, under a lock that readers do not feel.
    FOR _name IN
        SELECT m.name FROM embedding_models AS m
        WHERE model IS NULL OR m.name = model
        ORDER BY m.name
    LOOP
        _plan := vector_index_plan(_name);
        _name := vector_index_name(_plan.model_name) || '__new';
        _sample := '[]';
        IF _plan.method <> 'exact' THEN
            IF _plan.budget_bytes > pg_size_bytes(_memory) THEN
                -- What the plan counts on. Workers would share that much, and a container
                -- seldom has it as shared memory.
                _ignored := set_config(
                    'maintenance_work_mem', least(_plan.budget_bytes / 1024, 2147483647) || 'kB', true);
                _ignored := set_config('max_parallel_maintenance_workers', '0', true);
            END IF;
            EXECUTE vector_index_sql(_plan, _name);
            _ignored := set_config('maintenance_work_mem', _memory, true);
            _ignored := set_config('max_parallel_maintenance_workers', _workers, true);
            _sample := vector_recall_sample(_plan.model_name, 100);
        END IF;
        _plans := _plans || _plan;
        _models := _models || tune_vector_index(_plan, _name, _sample);
    END LOOP;

    FOR _number IN 1..cardinality(_plans) LOOP
        _plan := _plans[_number];
        _model := _models[_number];
        PERFORM swap_vector_index(_model);
        IF _plan.method = 'exact' THEN
            _report := _report || format(
                '%s: exact scan, no index; %s vectors. %s', _model.name, _plan.row_count, _plan.reason);
        ELSE
            _report := _report || format(
                '%s: %s on %s, %s; %s vectors; recall@10 %s at %s (target %s%s). %s',
                _model.name,
                CASE _plan.method WHEN 'hnsw' THEN 'HNSW' ELSE 'IVFFlat' END,
                _plan.storage,
                CASE _plan.method
                    WHEN 'hnsw' THEN format('m %s, ef_construction %s', _plan.m, _plan.ef_construction)
                    ELSE format('%s lists', _plan.lists)
                END,
                _plan.row_count,
                coalesce(round(_model.measured_recall::numeric, 3)::text, 'not measured'),
                CASE _plan.method
                    WHEN 'hnsw' THEN format('ef_search %s', _model.ef_search)
                    ELSE format('probes %s', _model.probes)
                END,
                _model.target_recall,
                CASE WHEN _model.measured_recall < _model.target_recall THEN ', NOT reached' END,
                _plan.reason);
        END IF;
    END LOOP;
    ANALYZE public.embeddings;

    -- Last, because from here to the commit readers wait.
    FOREACH _plan IN ARRAY _plans LOOP
        _name := vector_index_name(_plan.model_name) || '__old';
        IF NOT drop_vector_index(_name) THEN
            _report := _report || format(
                '%s: the former index is in use and stays; drop it later: DROP INDEX CONCURRENTLY %I;',
                _plan.model_name, _name);
        END IF;
    END LOOP;
    RETURN coalesce(nullif(array_to_string(_report, E'\n'), ''), 'No embedding model is registered: nothing to index.');
END;
$$;

REVOKE EXECUTE ON FUNCTION public.rebuild_vector_indexes FROM PUBLIC;

COMMENT ON FUNCTION public.rebuild_vector_indexes IS
    'Builds, measures and swaps in the vector index that each model''s plan calls for, in one transaction; returns a report.';
