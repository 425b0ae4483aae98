-- vector_index_sql(plan, index name, concurrently, apart) -> text
--
-- Promises   the CREATE INDEX of a plan: partial by the model's name and by the
--            segment after the visible one, so that it takes in a large load, on the
--            very expression that vector_candidates_sql orders by.
--            With `apart` no search uses it before the model's visible_segment is
--            raised to that segment, and then only those that read it raised. Without,
--            one that read the former segment may use it as well.
-- Called by  rebuild_vector_indexes, which builds and swaps where nobody sees it, and
--            searches that began before must be served after; the command of that
--            name, whose index others see before it has been measured.
-- Volatility STABLE, as format() is; the body is bound at creation.
--
-- How `apart` works: "segment <= 1" implies "segment <= 2", and the planner knows it;
-- of "(segment <= 2) IS TRUE" it knows only that this implies itself.

CREATE FUNCTION public.vector_index_sql(
    p_plan vector_index_choice,
    p_index_name text,
    p_concurrently boolean DEFAULT false,
    p_apart boolean DEFAULT false
)
RETURNS text
LANGUAGE sql
STABLE
PARALLEL SAFE
RETURN format(
    'CREATE INDEX %s%I ON public.embeddings USING %s (%s %s) WITH (%s) WHERE embedding_model = %L AND (segment <= %s)%s',
    CASE WHEN p_concurrently THEN 'CONCURRENTLY ' END,
    p_index_name,
    p_plan.method,
    public.vector_order_expression(p_plan.storage, p_plan.dimensions, 'embedding'),
    CASE p_plan.storage
        WHEN 'vector' THEN 'vector_cosine_ops'
        WHEN 'halfvec' THEN 'halfvec_cosine_ops'
        ELSE 'bit_hamming_ops'
    END,
    CASE p_plan.method
        WHEN 'hnsw' THEN format('m = %s, ef_construction = %s', p_plan.m, p_plan.ef_construction)
        ELSE format('lists = %s', p_plan.lists)
    END,
    p_plan.model_name,
    (SELECT m.visible_segment + 1 FROM public.embedding_models AS m WHERE m.name = p_plan.model_name),
    CASE WHEN p_apart THEN ' IS TRUE' END
);

REVOKE EXECUTE ON FUNCTION public.vector_index_sql FROM PUBLIC;

COMMENT ON FUNCTION public.vector_index_sql IS
    'The CREATE INDEX statement of a vector_index_choice.';
