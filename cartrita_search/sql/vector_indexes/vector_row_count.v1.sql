-- vector_row_count(model) -> bigint
--
-- Promises   the number of vectors of a model: exact up to 100,000, beyond that
--            the planner's estimate (never below 100,001), so that asking stays
--            cheap on any table.
-- Volatility STABLE.

CREATE FUNCTION public.vector_row_count(p_model text)
RETURNS bigint
LANGUAGE plpgsql
STABLE
PARALLEL SAFE
SET search_path = public, pg_temp
AS $$
DECLARE
    _counted bigint;
    _estimate double precision;
BEGIN
    SELECT count(*) INTO _counted
    FROM (
        SELECT FROM embeddings AS e WHERE e.embedding_model = p_model LIMIT 100001
    ) AS some_rows;
    IF _counted <= 100000 THEN
        RETURN _counted;
    END IF;

    -- The model's share of the table, from the statistics of ANALYZE; a table
    -- never analyzed, or a model too rare to be listed, has none.
    SELECT c.reltuples * f.share INTO _estimate
    FROM pg_class AS c
    CROSS JOIN pg_stats AS s
    CROSS JOIN LATERAL unnest(s.most_common_vals::text::text [], s.most_common_freqs) AS f (name, share)
    WHERE c.oid = 'public.embeddings'::regclass AND c.reltuples > 0
        AND s.schemaname = 'public' AND s.tablename = 'embeddings' AND s.attname = 'embedding_model'
        AND f.name = p_model;
    IF _estimate IS NULL THEN
        SELECT count(*) INTO _estimate FROM embeddings AS e WHERE e.embedding_model = p_model;
    END IF;
    RETURN greatest(_estimate, 100001)::bigint;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.vector_row_count FROM PUBLIC;

COMMENT ON FUNCTION public.vector_row_count IS
    'Vectors of a model: counted up to 100,000, estimated from statistics beyond.';
