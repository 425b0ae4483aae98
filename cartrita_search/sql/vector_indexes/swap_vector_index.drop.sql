DROP FUNCTION public.swap_vector_index;
