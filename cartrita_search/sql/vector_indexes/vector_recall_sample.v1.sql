-- vector_recall_sample(model, size, k) -> jsonb
--
-- Promises   up to `size` stored vectors of the model, each with the cosine of
--            its k-th nearest neighbour (itself left out) by exact scan:
--            [{"id": ..., "similarity": ...}, ...]. What recall is measured by.
-- Called by  rebuild_vector_indexes, before an index is swapped in.
-- Cost       a scan of the model's vectors for each: 40 ms for 100,000 x 384.
-- Volatility STABLE.
--
-- Ordering by the bare column, without the cast, is what keeps the vector index
-- out. Ids are random, so the first by id are a fair sample.

CREATE FUNCTION public.vector_recall_sample(
    p_model text,
    p_size integer DEFAULT 50,
    p_k integer DEFAULT 10
)
RETURNS jsonb
LANGUAGE sql
STABLE
SET search_path = public, pg_temp
AS $$
SELECT coalesce(jsonb_agg(jsonb_build_object('id', q.id, 'similarity', n.similarity)), '[]')
FROM (
    SELECT e.id, e.embedding
    FROM embeddings AS e
    WHERE e.embedding_model = p_model
    ORDER BY e.id
    LIMIT p_size
) AS q
CROSS JOIN LATERAL (
    SELECT 1 - (e.embedding <=> q.embedding) AS similarity
    FROM embeddings AS e
    WHERE e.embedding_model = p_model AND e.id <> q.id
    ORDER BY e.embedding <=> q.embedding
    LIMIT 1 OFFSET p_k - 1
) AS n;
$$;

REVOKE EXECUTE ON FUNCTION public.vector_recall_sample FROM PUBLIC;

COMMENT ON FUNCTION public.vector_recall_sample IS
    'Stored vectors of a model with the exact cosine of their k-th neighbour: the truth that recall is measured against.';
