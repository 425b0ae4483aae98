-- claim_embedding_work(model, max_documents, after, source, retry_before)
--     -> document_id, title, content, content_hash
--
-- Promises   up to max_documents documents that have no vector under the model, or
--            one of another text, in the order of their ids, beginning after the id
--            given. They are the caller's until its transaction ends: no other caller
--            gets one of them, and none that another has been given is among them.
--            No row: nothing is left beyond `after`, but what others have in hand.
--            Documents that were set aside (embedding_refusals) for their present
--            text are passed over, unless that was before retry_before.
-- Called by  sync_embeddings, a transaction for each batch: claim, embed, store.
-- Locks      the documents FOR UPDATE, SKIP LOCKED: it waits for nobody. Whoever
--            changes one of them waits until the caller's transaction ends.
-- Volatility VOLATILE. The caller's transaction must be READ COMMITTED.

CREATE FUNCTION public.claim_embedding_work(
    p_model text,
    p_max_documents integer,
    p_after uuid DEFAULT NULL,
    p_source text DEFAULT NULL,
    p_retry_before timestamptz DEFAULT NULL
)
RETURNS TABLE (document_id uuid, title text, content text, content_hash text)
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
DECLARE
    _after uuid := coalesce(p_after, '00000000-0000-0000-0000-000000000000');
    _retry_before CONSTANT timestamptz := coalesce(p_retry_before, '-infinity');
    _locked uuid [];
BEGIN
    LOOP
        -- Scalar subqueries and not joins: the planner cannot turn them into a hash
        -- join of both whole tables for every batch, so the batch is read off the
        -- primary key, and each document's vector off its unique index.
        _locked := ARRAY(
            SELECT d.id
            FROM search_documents AS d
            WHERE d.id > _after
                AND (p_source IS NULL OR d.source_table = p_source)
                AND d.content_hash IS DISTINCT FROM (
                    SELECT e.content_hash FROM embeddings AS e
                    WHERE e.document_id = d.id AND e.embedding_model = p_model
                )
                AND d.content_hash IS DISTINCT FROM (
                    SELECT r.content_hash FROM embedding_refusals AS r
                    WHERE r.document_id = d.id AND r.embedding_model = p_model
                        AND r.refused_at >= _retry_before
                )
            ORDER BY d.id
            LIMIT p_max_documents
            FOR UPDATE SKIP LOCKED
        );
        EXIT WHEN _locked = '{}';
        _after := _locked[cardinality(_locked)];

        -- Once more, by a statement that sees what was committed before the locks
        -- were granted: the statement above may have begun while another worker
        -- still held a document, and have locked it just after that one was done.
        RETURN QUERY
        SELECT d.id, d.title, d.content, d.content_hash
        FROM search_documents AS d
        WHERE d.id = ANY (_locked)
            AND d.content_hash IS DISTINCT FROM (
                SELECT e.content_hash FROM embeddings AS e
                WHERE e.document_id = d.id AND e.embedding_model = p_model
            )
            AND d.content_hash IS DISTINCT FROM (
                SELECT r.content_hash FROM embedding_refusals AS r
                WHERE r.document_id = d.id AND r.embedding_model = p_model
                    AND r.refused_at >= _retry_before
            )
        ORDER BY d.id;
        EXIT WHEN FOUND;
    END LOOP;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.claim_embedding_work FROM PUBLIC;

COMMENT ON FUNCTION public.claim_embedding_work IS
    'Documents that await a vector under a model, locked for the caller until its transaction ends.';
