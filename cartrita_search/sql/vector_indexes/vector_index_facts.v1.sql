-- vector_index_facts(model, suffix) -> at most one row
--
-- Promises   what the catalog knows of the model's index (suffix '', '__new', '__old'):
--            no row if there is none of that name. storage and dimensions are those of
--            the indexed expression; options as in "m=16"; of_model, whether it is
--            partial by this model's name; segment, up to which it takes rows in, NULL
--            for all; is_valid, whether the planner may use it.
-- Called by  vector_index_needs, vector_index_status, the command
--            rebuild_vector_indexes.
-- Volatility STABLE.

CREATE FUNCTION public.vector_index_facts(p_model text, p_suffix text DEFAULT '')
RETURNS TABLE (
    index_oid oid,
    index_name text,
    method text,
    storage text,
    dimensions integer,
    options text [],
    of_model boolean,
    segment integer,
    is_valid boolean,
    size_bytes bigint
)
LANGUAGE sql
STABLE
SET search_path = public, pg_temp
AS $$
SELECT c.oid, c.relname::text, am.amname::text, t.typname::text, a.atttypmod,
    coalesce(c.reloptions, '{}'),
    strpos(p.predicate, format('(embedding_model = %L::text)', p_model)) > 0,
    (regexp_match(p.predicate, 'AND \(+segment <= (\d+)(\) IS TRUE)?\)+$'))[1]::integer,
    x.indisvalid AND x.indisready AND x.indislive,
    pg_relation_size(c.oid)
FROM pg_class AS c
INNER JOIN pg_index AS x ON x.indexrelid = c.oid
INNER JOIN pg_am AS am ON am.oid = c.relam
INNER JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = 1
INNER JOIN pg_type AS t ON t.oid = a.atttypid
CROSS JOIN LATERAL coalesce(pg_get_expr(x.indpred, x.indrelid), '') AS p (predicate)
WHERE c.relnamespace = 'public'::regnamespace
    AND c.relname = vector_index_name(p_model) || p_suffix
    AND x.indrelid = 'public.embeddings'::regclass;
$$;

REVOKE EXECUTE ON FUNCTION public.vector_index_facts FROM PUBLIC;

COMMENT ON FUNCTION public.vector_index_facts IS
    'What the catalog knows of a model''s vector index, or of the one that a rebuild is making or has replaced.';
