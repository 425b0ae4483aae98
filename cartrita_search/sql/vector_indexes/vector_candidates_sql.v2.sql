-- vector_candidates_sql(model, filter) -> text
--
-- Promises   a SELECT of (id, document_id, source_table, source_id, chunk_index,
--            metadata, similarity) that the planner answers from the model's
--            index where it has one. Parameters of the statement:
--              $1 query vector   $2 how many candidates   $3 search_filter
--            similarity is the exact cosine at full precision, whatever the
--            index stores; rows come in no particular order. With a filter the
--            statement gives $2 rows if so many pass it: where the scan of the
--            index ended with fewer (pgvector gives up after
--            hnsw.max_scan_tuples), all that pass are compared exactly instead.
-- Called by  similarity_search, hybrid_search, vector_recall.
-- Volatility STABLE, as format() is.
--
-- Why text: a partial expression index is used only when the query holds the
-- same cast and the model's name as a literal, and only when it is ordered by
-- the bare operator, ascending, under a LIMIT. Anything else (1 - distance DESC,
-- a joined query vector, a name in a variable) silently scans the whole table.
-- The segment is in the index's condition too, see embeddings_segment.

CREATE FUNCTION public.vector_candidates_sql(p_model embedding_models, p_filter search_filter)
RETURNS text
LANGUAGE plpgsql
STABLE
PARALLEL SAFE
SET search_path = public, pg_temp
AS $$
DECLARE
    -- Owner, source and metadata are copied to embeddings; the rest is the
    -- document's alone.
    _copied search_filter := p_filter;
    _joined CONSTANT boolean := p_filter.tags IS NOT NULL OR p_filter.created_after IS NOT NULL;
    _scan text;
    _nearest text;
BEGIN
    _copied.tags := NULL;
    _copied.created_after := NULL;
    _scan := format(
        'SELECT e.* FROM embeddings AS e%s WHERE e.embedding_model = %L AND e.segment <= %s%s',
        CASE
            WHEN _joined THEN ' INNER JOIN search_documents AS d ON d.id = e.document_id'
                || search_filter_sql(p_filter, 'd')
        END,
        p_model.name,
        p_model.visible_segment,
        search_filter_sql(_copied, 'e'));
    _nearest := concat(_scan, ' ORDER BY ', CASE
        -- Where many are as near as the last, the id decides which: pages are stable.
        WHEN p_model.index_method = 'exact' THEN 'e.embedding <=> $1, e.id'
        ELSE format(
            '%s %s %s',
            vector_order_expression(p_model.index_storage, p_model.dimensions, 'e.embedding'),
            CASE p_model.index_storage WHEN 'bit' THEN '<~>' ELSE '<=>' END,
            vector_order_expression(p_model.index_storage, p_model.dimensions, '$1'))
    END, ' LIMIT $2');

    IF p_model.index_method <> 'exact' AND NOT (p_filter IS NULL) THEN
        -- Of the two parts one is executed: the count is known before either begins.
        _nearest := format(
            $statement$
WITH nearest AS MATERIALIZED (%s)
SELECT n.* FROM nearest AS n WHERE (SELECT count(*) FROM nearest) >= $2
UNION ALL
SELECT x.* FROM (%s ORDER BY e.embedding <=> $1, e.id LIMIT $2) AS x
WHERE (SELECT count(*) FROM nearest) < $2$statement$,
            _nearest, _scan);
    END IF;

    RETURN format(
        $statement$
SELECT c.id, c.document_id, c.source_table, c.source_id, c.chunk_index, c.metadata,
    1 - (c.embedding <=> $1) AS similarity
FROM (%s) AS c%s$statement$,
        _nearest,
        -- The copied owner can be behind: a change of owner in a REPEATABLE READ
        -- transaction does not see a vector committed after its snapshot.
        CASE
            WHEN p_filter.user_id IS NOT NULL AND NOT _joined THEN '
WHERE EXISTS (
    SELECT FROM search_documents AS d
    WHERE d.id = c.document_id AND (d.user_id = ($3).user_id OR d.user_id IS NULL)
)'
        END);
END;
$$;

REVOKE EXECUTE ON FUNCTION public.vector_candidates_sql FROM PUBLIC;

COMMENT ON FUNCTION public.vector_candidates_sql IS
    'The SELECT of a model''s nearest vectors, as text, in the one form that uses the model''s index.';
