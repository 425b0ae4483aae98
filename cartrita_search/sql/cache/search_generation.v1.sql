-- search_generation(namespaces) -> text
--
-- Promises   the state of all that an answer decided by these namespaces is made from, as
--            this statement's snapshot has it, and of whom and which database it is asked:
--            two equal ones have equal answers. NULL in a transaction that has written:
--            what it sees is nobody else's yet.
-- Called by  cache.py, before a search, on its connection; it works on a replica too, and
--            tells the state that the replica has come to.
-- Locks      none.
-- Volatility STABLE.

CREATE FUNCTION public.search_generation(p_namespaces text [])
RETURNS text
LANGUAGE plpgsql
STABLE
SET search_path = public, pg_temp
-- However small the table is when this is planned: see search_generations.
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
AS $$
BEGIN
    IF pg_current_xact_id_if_assigned() IS NOT NULL THEN
        RETURN NULL;
    END IF;
    RETURN (
        SELECT concat_ws(
            ' ', (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database()),
            current_user, string_agg(g.stamp::text, ' '))
        FROM unnest(p_namespaces) WITH ORDINALITY AS n (namespace, position)
        CROSS JOIN LATERAL (
            SELECT s.slot, newest.stamp
            FROM generate_series(0, generation_slots(n.namespace) - 1) AS s (slot)
            CROSS JOIN LATERAL (
                SELECT x.stamp FROM search_generations AS x
                WHERE x.namespace = n.namespace AND x.slot = s.slot::smallint
                ORDER BY x.revision DESC
                LIMIT 1
            ) AS newest
            UNION ALL
            SELECT x.slot, x.stamp FROM search_generations AS x
            WHERE x.namespace = n.namespace AND x.slot >= generation_slots(n.namespace)
        ) AS g
    );
END;
$$;

REVOKE EXECUTE ON FUNCTION public.search_generation FROM PUBLIC;

COMMENT ON FUNCTION public.search_generation IS
    'The state that a cached answer of these namespaces is valid for; NULL in a transaction that has written.';
