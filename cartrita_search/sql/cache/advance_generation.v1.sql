-- advance_generation(namespace) -> bigint
--
-- Promises   results cached under the namespace are never found again by a search that
--            begins after this transaction's commit; if it is rolled back they are.
--            Returns the revision of the row that says so.
--            Once a transaction is enough: one that has written caches nothing.
-- Called by  follow_search_generation(), which is the triggers on whatever decides an
--            answer; invalidate_search_cache().
-- Locks      waits for nobody, and nobody waits for it. A slot is taken by an advisory
--            lock that is tried, not queued for, and held until commit: two writers never
--            wait for each other here, so this can be part of no deadlock, as it would be
--            with a lock on the slot's row. Nor does it ever fail to serialise.
-- Volatility VOLATILE.

-- Every writer pays for each line, once a transaction. So nothing is SET, names are written
-- in full instead, and no assignment has to convert: that is an expression more.

CREATE FUNCTION public.advance_generation(p_namespace text)
RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    _slots CONSTANT integer := public.generation_slots(p_namespace);
    -- After the last one, if none is free.
    _slot integer := _slots;
    _revision bigint;
BEGIN
    FOR _i IN 1.._slots LOOP
        -- Sessions begin at different ones.
        IF pg_try_advisory_xact_lock(hashtext(p_namespace), (pg_backend_pid() + _i) % _slots) THEN
            _slot := (pg_backend_pid() + _i) % _slots;
            EXIT;
        END IF;
    END LOOP;
    -- The revision is drawn with the lock held: it is the slot's highest.
    INSERT INTO public.search_generations (namespace, slot) VALUES (p_namespace, _slot)
    RETURNING revision INTO _revision;
    IF _revision % 256 = 0 THEN
        PERFORM public.sweep_generations(p_namespace, _slot::smallint, _revision);
    END IF;
    RETURN _revision;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.advance_generation FROM PUBLIC;

COMMENT ON FUNCTION public.advance_generation IS
    'From this transaction''s commit on, nothing cached under the namespace before is found.';
