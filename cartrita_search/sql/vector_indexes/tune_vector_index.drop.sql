DROP FUNCTION public.tune_vector_index;
