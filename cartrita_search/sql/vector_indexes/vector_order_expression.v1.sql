-- vector_order_expression(storage, dimensions, operand) -> text
-- vector_order_operator(storage) -> text: in its own file
--
-- Promises   the SQL text that an index of this storage is built on, and that a
--            query has to repeat to the letter for the planner to use it.
-- Called by  vector_candidates_sql and create_vector_index: this is the one
--            place that knows the cast.
-- Volatility STABLE, as format() is; the body is bound at creation.

CREATE FUNCTION public.vector_order_expression(p_storage text, p_dimensions integer, p_operand text)
RETURNS text
LANGUAGE sql
STABLE
PARALLEL SAFE
RETURN CASE p_storage
    WHEN 'vector' THEN format('(%s::vector(%s))', p_operand, p_dimensions)
    WHEN 'halfvec' THEN format('(%s::halfvec(%s))', p_operand, p_dimensions)
    WHEN 'bit' THEN format('(binary_quantize(%s)::bit(%s))', p_operand, p_dimensions)
END;

REVOKE EXECUTE ON FUNCTION public.vector_order_expression FROM PUBLIC;

COMMENT ON FUNCTION public.vector_order_expression IS
    'The expression that a vector index of this storage is built on, as SQL text.';
