-- drop_vector_index(name) -> boolean
--
-- Promises   true when no index of that name is left, false when it could not be
--            dropped because the table is in use. Never waits long.
-- Called by  rebuild_vector_indexes.
-- Locks      ACCESS EXCLUSIVE on embeddings until commit once it succeeds; tried
--            three times for half a second, since everybody queues behind a
--            waiting one.
--
-- Half a second is also less than deadlock_timeout, so that a transaction that
-- has read and waits to write never pays for our trying.

CREATE FUNCTION public.drop_vector_index(p_name text)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET lock_timeout = '500ms'
AS $$
BEGIN
    IF to_regclass(format('public.%I', p_name)) IS NULL THEN
        RETURN true;
    END IF;
    FOR _try IN 1..3 LOOP
        BEGIN
            EXECUTE format('DROP INDEX public.%I', p_name);
            RETURN true;
        EXCEPTION
            WHEN lock_not_available OR deadlock_detected THEN
                NULL;
        END;
    END LOOP;
    RETURN false;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.drop_vector_index FROM PUBLIC;

COMMENT ON FUNCTION public.drop_vector_index IS
    'Drops an index if its lock can be had at once; tells whether it is gone.';
