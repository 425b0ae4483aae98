-- vector_index_plan(model, method, storage, row_count, m, ef_construction, lists,
--                   budget_bytes) -> vector_index_choice
--
-- Promises   which index the model should have, and why. The rules:
--              up to exact_scan_max_rows vectors   exact scan, no index
--              an HNSW graph within the budget     HNSW
--              otherwise                           IVFFlat, lists = rows / 1000
--                                                  up to 1M rows, sqrt(rows) beyond
--            storage: the model's preferred_storage; where that is 'auto',
--            halfvec up to 4000 dimensions (half the memory and the faster build
--            and search; results are re-ranked at full precision), one bit a
--            component beyond.
--            method and storage other than 'auto' are taken as they are, or
--            refused with SE009 where they cannot be; but IVFFlat, which finds its
--            lists among the vectors, is an exact scan while there are none.
--            row_count other than NULL asks "what if"; m, ef_construction, lists and
--            budget_bytes stand in for the settings.
-- Raises     SE003 unknown model, SE009 impossible wish.
-- Called by  rebuild_vector_indexes, vector_index_status, the command, the admin,
--            operators.
-- Volatility STABLE.
--
-- The graph: pgvector 0.8 keeps for every vector its value and 32 m + 200 bytes
-- of links (from the row counts at which "hnsw graph no longer fits" is raised,
-- m 16 and 32). Built beyond the budget, the same graph takes many times as long.

CREATE FUNCTION public.vector_index_plan(
    model text,
    method text DEFAULT 'auto',
    storage text DEFAULT 'auto',
    row_count bigint DEFAULT NULL,
    m integer DEFAULT NULL,
    ef_construction integer DEFAULT NULL,
    lists integer DEFAULT NULL,
    budget_bytes bigint DEFAULT NULL
)
RETURNS vector_index_choice
LANGUAGE plpgsql
STABLE
SET search_path = public, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    _settings search_settings;
    _plan vector_index_choice;
    _value_bytes bigint;
    _graph_bytes bigint;
    _budget_source text;
BEGIN
    SELECT s.* INTO _settings FROM search_settings AS s;
    SELECT r.name, r.dimensions, CASE storage WHEN 'auto' THEN r.preferred_storage ELSE storage END
    INTO _plan.model_name, _plan.dimensions, storage
    FROM embedding_models AS r
    WHERE r.name = model;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'There is no embedding model "%".', left(model, 200)
            USING ERRCODE = 'SE003', HINT = 'SELECT name FROM embedding_models lists them.';
    END IF;
    IF method IS NULL OR method NOT IN ('auto', 'exact', 'hnsw', 'ivfflat') THEN
        RAISE EXCEPTION 'There is no index method "%".', coalesce(method, 'NULL')
            USING ERRCODE = 'SE009', HINT = 'Use auto, exact, hnsw or ivfflat.';
    END IF;
    IF storage IS NULL OR storage NOT IN ('auto', 'vector', 'halfvec', 'bit') THEN
        RAISE EXCEPTION 'There is no index storage "%".', coalesce(storage, 'NULL')
            USING ERRCODE = 'SE009', HINT = 'Use auto, vector, halfvec or bit.';
    END IF;
    IF storage = 'vector' AND _plan.dimensions > 2000 OR storage = 'halfvec' AND _plan.dimensions > 4000 THEN
        RAISE EXCEPTION 'Storage "%" indexes up to % dimensions; model "%" has %.',
            storage, CASE storage WHEN 'vector' THEN 2000 ELSE 4000 END, model, _plan.dimensions
            USING ERRCODE = 'SE009', HINT = 'Nothing was changed. Use halfvec up to 4000 dimensions, bit beyond, or auto.';
    END IF;

    m := coalesce(m, _settings.hnsw_m);
    ef_construction := coalesce(ef_construction, greatest(_settings.hnsw_ef_construction, 2 * m));
    IF m NOT BETWEEN 2 AND 100 OR ef_construction NOT BETWEEN 4 AND 1000 OR ef_construction < 2 * m THEN
        RAISE EXCEPTION 'HNSW takes m from 2 to 100 and ef_construction from 2 m (at least 4) to 1000, not % and %.',
            m, ef_construction
            USING ERRCODE = 'SE009', HINT = 'Nothing was changed.';
    END IF;

    _plan.row_count := coalesce(row_count, vector_row_count(model));
    IF lists NOT BETWEEN 1 AND 32768 OR lists > greatest(1, _plan.row_count) THEN
        RAISE EXCEPTION 'IVFFlat takes 1 to 32768 lists, and no more than there are vectors (%), not %.',
            _plan.row_count, lists
            USING ERRCODE = 'SE009', HINT = 'Nothing was changed. A list for each 1000 vectors is the usual.';
    END IF;
    _plan.storage := CASE
        WHEN storage <> 'auto' THEN storage
        WHEN _plan.dimensions <= 4000 THEN 'halfvec'
        ELSE 'bit'
    END;
    _value_bytes := CASE _plan.storage
        WHEN 'vector' THEN 8 + 4 * _plan.dimensions
        WHEN 'halfvec' THEN 8 + 2 * _plan.dimensions
        ELSE 8 + _plan.dimensions / 8
    END;
    _graph_bytes := _plan.row_count * (_value_bytes + 32 * m + 200);
    _plan.budget_bytes := coalesce(
        budget_bytes,
        _settings.index_memory_budget_mb * 1048576::bigint,
        pg_size_bytes(current_setting('maintenance_work_mem')));
    _budget_source := CASE
        WHEN budget_bytes IS NOT NULL THEN 'asked for'
        WHEN _settings.index_memory_budget_mb IS NULL THEN 'maintenance_work_mem'
        ELSE 'search_settings'
    END;

    _plan.method := CASE
        WHEN method = 'ivfflat' AND _plan.row_count = 0 THEN 'exact'
        WHEN method <> 'auto' THEN method
        WHEN _plan.row_count <= _settings.exact_scan_max_rows THEN 'exact'
        WHEN _graph_bytes <= _plan.budget_bytes THEN 'hnsw'
        ELSE 'ivfflat'
    END;
    IF _plan.method = 'exact' THEN
        _plan.storage := 'vector';
        _plan.estimated_bytes := 0;
    ELSIF _plan.method = 'hnsw' THEN
        _plan.m := m;
        _plan.ef_construction := ef_construction;
        _plan.estimated_bytes := _graph_bytes;
    ELSE
        _plan.lists := CASE
            WHEN lists IS NOT NULL THEN lists
            WHEN _plan.row_count <= 1000000 THEN greatest(1, _plan.row_count / 1000)
            ELSE least(32768, sqrt(_plan.row_count)::bigint)
        END;
        _plan.estimated_bytes := (_plan.row_count + _plan.lists) * (_value_bytes + 16);
    END IF;

    _plan.reason := concat(
        CASE
            WHEN method = 'ivfflat' AND _plan.method = 'exact'
                THEN 'ivfflat was asked for, but without vectors there are no lists to find.'
            WHEN method = 'ivfflat' AND _plan.row_count < 1000 THEN format(
                'ivfflat was asked for. Lists found among %s vectors will not suit many more: rebuild as they come.',
                _plan.row_count)
            WHEN method <> 'auto' THEN format('%s was asked for.', method)
            WHEN _plan.method = 'exact' THEN format(
                'An exact scan of up to %s vectors is fast enough, and exact.', _settings.exact_scan_max_rows)
            WHEN _plan.method = 'hnsw' THEN format(
                'An HNSW graph of about %s fits the budget of %s (%s).',
                pg_size_pretty(_graph_bytes), pg_size_pretty(_plan.budget_bytes), _budget_source)
            ELSE format(
                'An HNSW graph would take about %s, more than the budget of %s (%s): IVFFlat builds in little memory.',
                pg_size_pretty(_graph_bytes), pg_size_pretty(_plan.budget_bytes), _budget_source)
        END,
        CASE
            WHEN _plan.method = 'exact' THEN NULL
            WHEN storage <> 'auto' THEN format(' Storage %s was asked for.', storage)
            WHEN _plan.storage = 'bit'
                THEN format(' %s dimensions are more than halfvec indexes (4000): one bit each.', _plan.dimensions)
        END
    );
    RETURN _plan;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.vector_index_plan FROM PUBLIC;

COMMENT ON FUNCTION public.vector_index_plan IS
    'The vector index that a model should have (exact scan, HNSW or IVFFlat), its estimated size and the reason.';
