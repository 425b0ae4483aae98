DROP FUNCTION public.vector_order_expression;
