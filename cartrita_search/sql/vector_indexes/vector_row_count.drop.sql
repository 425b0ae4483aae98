DROP FUNCTION public.vector_row_count;
