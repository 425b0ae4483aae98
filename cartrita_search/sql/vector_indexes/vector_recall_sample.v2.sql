-- vector_recall_sample(model, size, k) -> jsonb
--
-- Promises   up to `size` stored vectors of the model, each with the cosine of
--            its k-th nearest neighbour (itself left out) by exact scan:
--            [{"id": ..., "similarity": ...}, ...]. What recall is measured by.
-- Called by  rebuild_vector_indexes, before an index is swapped in.
-- Cost       a scan of the model's vectors for each, by as many parallel workers as
--            the planner likes: 20 to 40 ms for 100,000 x 384.
-- Volatility STABLE.
--
-- Ordering by the bare column, without the cast, is what keeps the vector index
-- out. Ids are random, so the first by id are a fair sample. EXECUTE, one scan a
-- vector: neither a join nor SELECT INTO would be done in parallel.

CREATE FUNCTION public.vector_recall_sample(
    p_model text,
    p_size integer DEFAULT 50,
    p_k integer DEFAULT 10
)
RETURNS jsonb
LANGUAGE plpgsql
STABLE
SET search_path = public, pg_temp
AS $$
DECLARE
    _question record;
    _similarity double precision;
    _sample jsonb := '[]';
BEGIN
    FOR _question IN
        SELECT e.id, e.embedding FROM embeddings AS e
        WHERE e.embedding_model = p_model
        ORDER BY e.id
        LIMIT p_size
    LOOP
        EXECUTE
            'SELECT 1 - (e.embedding <=> $1) FROM embeddings AS e '
            'WHERE e.embedding_model = $2 AND e.id <> $3 '
            'ORDER BY e.embedding <=> $1 LIMIT 1 OFFSET $4'
        INTO _similarity
        USING _question.embedding, p_model, _question.id, p_k - 1;
        IF _similarity IS NOT NULL THEN
            _sample := _sample || jsonb_build_object('id', _question.id, 'similarity', _similarity);
        END IF;
    END LOOP;
    RETURN _sample;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.vector_recall_sample FROM PUBLIC;

COMMENT ON FUNCTION public.vector_recall_sample IS
    'Stored vectors of a model with the exact cosine of their k-th neighbour: the truth that recall is measured against.';
