-- vector_candidates_sql(model, filter, candidates) -> text
--
-- Promises   a SELECT of (id, document_id, similarity) that the planner answers from
--            the model's index where that is the best way. Parameters of the
--            statement:
--              $1 query vector   $2 how many candidates   $3 search_filter
--            similarity is the exact cosine at full precision, whatever the
--            index stores; rows come in no particular order. There are $2 of them
--            if so many pass the filter.
-- Called by  similarity_search, similarity_statement, hybrid_search, vector_recall.
-- Volatility STABLE. The planner's estimate decides between two ways, both right.
--
-- Why text: a partial expression index is used only when the query holds the
-- same cast and the model's name as a literal, and only when it is ordered by
-- the bare operator, ascending, under a LIMIT. Anything else (1 - distance DESC,
-- a joined query vector, a name in a variable) silently scans the whole table.
-- The segment is in the index's condition too, see embeddings_segment, in one of two
-- forms, see vector_index_sql: the statement says both.
--
-- With a filter that p of n rows pass, walking the index until k of them are found
-- looks at k * n / p rows, each some five times as dear as one of the p rows when
-- these are fetched by the filter and compared exactly. So the exact way is taken
-- up to p = sqrt(5 * k * n): 3,500 of 100,000 rows for k = 25. The planner knows p
-- well enough, but not what a step in the graph costs.

CREATE FUNCTION public.vector_candidates_sql(
    p_model embedding_models,
    p_filter search_filter,
    p_candidates integer
)
RETURNS text
LANGUAGE plpgsql
STABLE
SET search_path = public, pg_temp
AS $$
DECLARE
    _filtered CONSTANT boolean := NOT (p_filter IS NULL);
    _of_model CONSTANT text := format(
        'e.embedding_model = %1$L AND e.segment <= %2$s AND (e.segment <= %2$s) IS TRUE',
        p_model.name, p_model.visible_segment);
    -- A lookup by document for each: as a join (without OFFSET 0) the planner may
    -- prefer to read the whole table of vectors, and where it takes the model for a
    -- rare one (without concat) the whole index that begins with the model.
    _exact CONSTANT text := concat(
        CASE
            WHEN _filtered THEN concat(
                'SELECT e.* FROM public.search_documents AS d CROSS JOIN LATERAL (SELECT e.id, e.document_id, e.embedding FROM public.embeddings AS e WHERE e.document_id = d.id AND ',
                replace(_of_model, 'e.embedding_model', 'concat(e.embedding_model)'),
                ' OFFSET 0) AS e WHERE true', search_filter_sql(p_filter, 'd'))
            ELSE 'SELECT e.id, e.document_id, e.embedding FROM public.embeddings AS e WHERE ' || _of_model
        END,
        -- Where many are as near as the last, the id decides which: pages are stable.
        ' ORDER BY e.embedding <=> $1, e.id LIMIT $2');
    -- What is copied to embeddings is looked at there, before the document is.
    _copied search_filter := p_filter;
    _nearest text := _exact;
BEGIN
    IF p_model.index_method <> 'exact' AND NOT (
        _filtered
        AND search_filter_rows(p_filter) ^ 2 <= 5.0 * p_candidates * coalesce(p_model.indexed_rows, 0)
    ) THEN
        _copied.tags := NULL;
        _copied.created_after := NULL;
        _nearest := concat(
            'SELECT e.id, e.document_id, e.embedding FROM public.embeddings AS e WHERE ', _of_model,
            CASE
                WHEN _filtered THEN concat(
                    search_filter_sql(_copied, 'e'),
                    CASE
                        WHEN p_filter.tags IS NOT NULL OR p_filter.created_after IS NOT NULL THEN concat(
                            ' AND EXISTS (SELECT FROM public.search_documents AS d WHERE d.id = e.document_id',
                            search_filter_sql(p_filter, 'd'), ')')
                    END)
            END,
            ' ORDER BY ',
            vector_order_expression(p_model.index_storage, p_model.dimensions, 'e.embedding'),
            CASE p_model.index_storage WHEN 'bit' THEN ' <~> ' ELSE ' <=> ' END,
            vector_order_expression(p_model.index_storage, p_model.dimensions, '$1'),
            ' LIMIT $2');
        IF _filtered THEN
            -- pgvector gives up after hnsw.max_scan_tuples: then the exact way after
            -- all. Of the two parts one is executed, as the count is known before.
            _nearest := format(
                $statement$
WITH nearest AS MATERIALIZED (%s)
SELECT n.* FROM nearest AS n WHERE (SELECT count(*) FROM nearest) >= $2
UNION ALL
SELECT x.* FROM (%s) AS x WHERE (SELECT count(*) FROM nearest) < $2$statement$,
                _nearest, _exact);
        END IF;
    END IF;

    RETURN format(
        $statement$
SELECT c.id, c.document_id, 1 - (c.embedding <=> $1) AS similarity
FROM (%s) AS c%s$statement$,
        _nearest,
        -- The copied owner can be behind: a change of owner in a REPEATABLE READ
        -- transaction does not see a vector committed after its snapshot.
        CASE
            WHEN p_filter.user_id IS NOT NULL AND _nearest <> _exact THEN '
WHERE EXISTS (
    SELECT FROM public.search_documents AS d
    WHERE d.id = c.document_id AND (d.user_id = ($3).user_id OR d.user_id IS NULL)
)'
        END);
END;
$$;

REVOKE EXECUTE ON FUNCTION public.vector_candidates_sql FROM PUBLIC;

COMMENT ON FUNCTION public.vector_candidates_sql IS
    'The SELECT of a model''s nearest vectors, as text, in the one form that uses the model''s index.';
