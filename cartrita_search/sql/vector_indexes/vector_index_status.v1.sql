-- vector_index_status(model) -> a row a model
--
-- Promises   what index the model (NULL: every model) has and should have: method and
--            storage in place, 'exact' without an index; parameters as in
--            "m=16,ef_construction=64"; is_valid and size_bytes NULL without an index;
--            rows_since_build, how many vectors more (or fewer) there are than it was
--            built on; needs, why rebuild_vector_indexes --if-needed would rebuild it.
-- Called by  operators, the admin, rebuild_vector_indexes --status, search_doctor.
-- Cost       see vector_index_needs.
-- Volatility STABLE.

CREATE FUNCTION public.vector_index_status(model text DEFAULT NULL)
RETURNS TABLE (
    model_name text,
    dimensions integer,
    planned_method text,
    planned_storage text,
    plan_reason text,
    index_name text,
    index_method text,
    index_storage text,
    parameters text,
    is_valid boolean,
    size_bytes bigint,
    row_count bigint,
    indexed_rows bigint,
    rows_since_build bigint,
    measured_recall double precision,
    target_recall double precision,
    ef_search integer,
    probes integer,
    indexed_at timestamptz,
    indexed_by text,
    needs text []
)
LANGUAGE sql
STABLE
SET search_path = public, pg_temp
AS $$
SELECT m.name, m.dimensions, p.method, p.storage, p.reason,
    f.index_name, coalesce(f.method, 'exact'), coalesce(f.storage, 'vector'),
    nullif(array_to_string(f.options, ','), ''), f.is_valid, f.size_bytes,
    p.row_count, m.indexed_rows, p.row_count - m.indexed_rows,
    m.measured_recall, m.target_recall, m.ef_search, m.probes, m.indexed_at, m.indexed_by,
    vector_index_needs(p.*)
FROM embedding_models AS m
CROSS JOIN LATERAL vector_index_plan(m.name) AS p
LEFT JOIN LATERAL vector_index_facts(m.name) AS f ON true
WHERE vector_index_status.model IS NULL OR m.name = vector_index_status.model
ORDER BY m.name;
$$;

REVOKE EXECUTE ON FUNCTION public.vector_index_status FROM PUBLIC;

COMMENT ON FUNCTION public.vector_index_status IS
    'Each model''s vector index: in place and planned, size, rows since the build, recall, who built it, and why to rebuild it.';
