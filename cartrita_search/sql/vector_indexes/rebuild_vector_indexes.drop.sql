DROP FUNCTION public.rebuild_vector_indexes;
