-- sweep_generations(namespace, slot, revision)
--
-- Promises   deletes the stamps that the row given has taken the place of: in a slot those
--            of lower revisions; after the last slot, where every row counts, all others,
--            for this one tells what is from what was.
-- Called by  advance_generation(), which has just added the row, now and then.
-- Locks      the rows deleted. Waits for nobody: a slot's are the caller's own by its
--            advisory lock, and those after the last are skipped while somebody else
--            sweeps them up.
-- Volatility VOLATILE. Does nothing but under READ COMMITTED, where it cannot fail to
--            serialise.

CREATE FUNCTION public.sweep_generations(p_namespace text, p_slot smallint, p_revision bigint)
RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp
-- The plans must stay index scans when the table is larger than now.
SET enable_seqscan = off
AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RETURN;
    END IF;
    IF p_slot < generation_slots(p_namespace) THEN
        -- Seldom from the first: deleted ones may be there still, for somebody's old
        -- snapshot, and each would be stepped over.
        DELETE FROM search_generations AS g
        WHERE g.namespace = p_namespace AND g.slot = p_slot AND g.revision < p_revision
            AND g.revision >= CASE WHEN p_revision % 4096 = 0 THEN 0 ELSE p_revision - 65536 END;
    ELSE
        DELETE FROM search_generations AS g
        WHERE g.ctid = ANY (ARRAY(
            SELECT x.ctid FROM search_generations AS x
            WHERE x.namespace = p_namespace AND x.slot = p_slot AND x.revision <> p_revision
            FOR UPDATE SKIP LOCKED
        ));
    END IF;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.sweep_generations FROM PUBLIC;

COMMENT ON FUNCTION public.sweep_generations IS
    'Deletes stamps of search_generations that a later one has taken the place of.';
