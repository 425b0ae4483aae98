-- drop_vector_index(name) -> boolean
--
-- Promises   true when no index of that name is left, false when it could not be
--            dropped because the table is in use. Nobody waits for the attempt.
-- Called by  rebuild_vector_indexes, as the last thing before it ends.
-- Locks      ACCESS EXCLUSIVE on embeddings until commit once it succeeds; tried
--            for a second, and never waited for.
--
-- A wait, however short, would be found by a transaction that has read and now
-- waits to write: it looks for a deadlock once, at a moment of its own, and would
-- be the victim.

CREATE FUNCTION public.drop_vector_index(p_name text)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
BEGIN
    IF to_regclass(format('public.%I', p_name)) IS NULL THEN
        RETURN true;
    END IF;
    FOR _try IN 1..20 LOOP
        BEGIN
            LOCK TABLE embeddings IN ACCESS EXCLUSIVE MODE NOWAIT;
            EXECUTE format('DROP INDEX public.%I', p_name);
            RETURN true;
        EXCEPTION
            WHEN lock_not_available THEN
                PERFORM pg_sleep(0.05);
        END;
    END LOOP;
    RETURN false;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.drop_vector_index FROM PUBLIC;

COMMENT ON FUNCTION public.drop_vector_index IS
    'Drops an index if its lock can be had at once; tells whether it is gone.';
