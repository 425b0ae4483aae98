DROP FUNCTION public.drop_vector_index;
