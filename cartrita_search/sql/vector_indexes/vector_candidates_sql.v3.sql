-- vector_candidates_sql(model, by_user, by_source, by_metadata) -> text
--
-- Promises   a SELECT of (id, document_id, source_table, source_id, chunk_index,
--            metadata, similarity) that the planner answers from the model's
--            index where it has one. Parameters of the statement, always five:
--              $1 query vector   $2 how many candidates   $3 owner
--              $4 source         $5 metadata
--            similarity is the exact cosine at full precision, whatever the
--            index stores; rows come in no particular order.
-- Called by  similarity_search, hybrid_search, vector_recall.
-- Volatility STABLE, as format() is.
--
-- Why text: a partial expression index is used only when the query holds the
-- same cast and the model's name as a literal, and only when it is ordered by
-- the bare operator, ascending, under a LIMIT. Anything else (1 - distance DESC,
-- a joined query vector, a name in a variable) silently scans the whole table.

CREATE FUNCTION public.vector_candidates_sql(
    p_model embedding_models,
    p_by_user boolean,
    p_by_source boolean,
    p_by_metadata boolean
)
RETURNS text
LANGUAGE sql
STABLE
PARALLEL SAFE
RETURN format(
    $$
SELECT c.id, c.document_id, c.source_table, c.source_id, c.chunk_index, c.metadata,
    1 - (c.embedding <=> $1) AS similarity
FROM (
    SELECT *
    FROM embeddings AS e
    WHERE e.embedding_model = %L AND e.segment <= %s%s%s%s
    ORDER BY %s
    LIMIT $2
) AS c%s$$,
    p_model.name,
    p_model.visible_segment,
    CASE WHEN p_by_user THEN ' AND (e.user_id = $3 OR e.user_id IS NULL)' END,
    CASE WHEN p_by_source THEN ' AND e.source_table = $4' END,
    CASE WHEN p_by_metadata THEN ' AND e.metadata @> $5' END,
    CASE
        -- Where many are as near as the last, the id decides which: pages are stable.
        WHEN p_model.index_method = 'exact' THEN 'e.embedding <=> $1, e.id'
        ELSE format(
            '%s %s %s',
            public.vector_order_expression(p_model.index_storage, p_model.dimensions, 'e.embedding'),
            CASE p_model.index_storage WHEN 'bit' THEN '<~>' ELSE '<=>' END,
            public.vector_order_expression(p_model.index_storage, p_model.dimensions, '$1')
        )
    END,
    -- The copied owner can be behind: a change of owner in a REPEATABLE READ
    -- transaction does not see a vector committed after its snapshot.
    CASE
        WHEN p_by_user THEN '
WHERE EXISTS (
    SELECT FROM search_documents AS d
    WHERE d.id = c.document_id AND (d.user_id = $3 OR d.user_id IS NULL)
)'
    END
);

REVOKE EXECUTE ON FUNCTION public.vector_candidates_sql FROM PUBLIC;

COMMENT ON FUNCTION public.vector_candidates_sql IS
    'The SELECT of a model''s nearest vectors, as text, in the one form that uses the model''s index.';
