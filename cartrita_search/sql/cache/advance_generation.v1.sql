-- advance_generation(namespace)
--
-- Promises   results cached under the namespace are never found again by a search that
--            begins after this transaction's commit; if it is rolled back they are.
--            Once a transaction is enough: one that has written caches nothing.
-- Called by  follow_search_generation(), which is the triggers on whatever decides an
--            answer; invalidate_search_cache().
-- Locks      waits for nobody, and nobody waits for it. A slot is taken by an advisory
--            lock that is tried, not queued for, and held until commit: two writers never
--            wait for each other here, so this can be part of no deadlock, as it would be
--            with a lock on the slot's row. Nor does it ever fail to serialise.
-- Volatility VOLATILE.

CREATE FUNCTION public.advance_generation(p_namespace text)
RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp
-- The plans must stay index scans when the table is larger than now.
SET enable_seqscan = off
AS $$
DECLARE
    _slots CONSTANT smallint := generation_slots(p_namespace);
    _slot smallint;
    _revision bigint;
BEGIN
    FOR _i IN 1.._slots LOOP
        -- Sessions begin at different ones.
        _slot := (pg_backend_pid() + _i) % _slots;
        CONTINUE WHEN NOT pg_try_advisory_xact_lock(hashtext(p_namespace), _slot);
        -- The revision is drawn with the lock held: it is the slot's highest.
        INSERT INTO search_generations (namespace, slot) VALUES (p_namespace, _slot)
        RETURNING revision INTO _revision;
        IF _revision % 64 = 0 AND current_setting('transaction_isolation') = 'read committed' THEN
            -- Seldom from the first: deleted ones may be there still, for somebody's old
            -- snapshot, and each would be stepped over.
            DELETE FROM search_generations AS g
            WHERE g.namespace = p_namespace AND g.slot = _slot AND g.revision < _revision
                AND g.revision >= CASE WHEN _revision % 4096 = 0 THEN 0 ELSE _revision - 65536 END;
        END IF;
        RETURN;
    END LOOP;

    INSERT INTO search_generations (namespace, slot) VALUES (p_namespace, _slots)
    RETURNING revision INTO _revision;
    -- This row tells what is from what was, so the others can go: now and then, and but
    -- for those that somebody else is sweeping up.
    IF _revision % 64 = 0 AND current_setting('transaction_isolation') = 'read committed' THEN
        DELETE FROM search_generations AS g
        WHERE g.ctid = ANY (ARRAY(
            SELECT x.ctid FROM search_generations AS x
            WHERE x.namespace = p_namespace AND x.slot = _slots AND x.revision <> _revision
            FOR UPDATE SKIP LOCKED
        ));
    END IF;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.advance_generation FROM PUBLIC;

COMMENT ON FUNCTION public.advance_generation IS
    'From this transaction''s commit on, nothing cached under the namespace before is found.';
