-- renew_cache_identity(reason)
--
-- Promises   nothing that was cached of this database so far is found again. Logged.
-- Called by  whoever has changed the tables past their triggers: a restore in place, a
--            data-only load with triggers disabled, a former subscriber of logical
--            replication. A restore into a new database needs it as little as a copy.
-- Locks      see advance_generation(): none that anybody waits for.
-- Volatility VOLATILE.

CREATE FUNCTION public.renew_cache_identity(p_reason text DEFAULT 'restore')
RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
BEGIN
    -- Such a load may bring rows with revisions that the sequence has not come to.
    PERFORM setval(
        pg_get_serial_sequence('public.search_generations', 'revision'),
        greatest(
            nextval(pg_get_serial_sequence('public.search_generations', 'revision')),
            (SELECT max(g.revision) FROM search_generations AS g)));
    PERFORM invalidate_search_cache('identity', p_reason);
END;
$$;

REVOKE EXECUTE ON FUNCTION public.renew_cache_identity FROM PUBLIC;

COMMENT ON FUNCTION public.renew_cache_identity IS
    'Nothing cached of this database so far is found again; for restores and writes past the triggers.';
