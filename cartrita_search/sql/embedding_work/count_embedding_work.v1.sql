-- count_embedding_work(model, source)
--     -> source_table, documents, missing, stale, set_aside
--
-- Promises   a row for each source table (or for that one): its documents, how many
--            have no vector under the model, how many have one of another text, and
--            how many of either kind are set aside with an error, which are not
--            counted among the former two.
-- Called by  sync_embeddings, before and after.
-- Cost       reads search_documents and the model's vectors.
-- Volatility STABLE. The body is bound when it is created.

CREATE FUNCTION public.count_embedding_work(p_model text, p_source text DEFAULT NULL)
RETURNS TABLE (
    source_table text, documents bigint, missing bigint, stale bigint, set_aside bigint
)
LANGUAGE sql
STABLE
BEGIN ATOMIC
    SELECT
        d.source_table,
        count(*),
        count(*) FILTER (WHERE e.id IS NULL AND r.id IS NULL),
        count(*) FILTER (WHERE e.content_hash <> d.content_hash AND r.id IS NULL),
        count(*) FILTER (WHERE e.content_hash IS DISTINCT FROM d.content_hash AND r.id IS NOT NULL)
    FROM public.search_documents AS d
    LEFT JOIN public.embeddings AS e
        ON e.document_id = d.id AND e.embedding_model = p_model
    LEFT JOIN public.embedding_refusals AS r
        ON r.document_id = d.id AND r.embedding_model = p_model
        AND r.content_hash = d.content_hash
    WHERE p_source IS NULL OR d.source_table = p_source
    GROUP BY d.source_table
    ORDER BY d.source_table;
END;

REVOKE EXECUTE ON FUNCTION public.count_embedding_work FROM PUBLIC;

COMMENT ON FUNCTION public.count_embedding_work IS
    'Per source: documents, and those whose vector under a model is missing, stale, or set aside with an error.';
