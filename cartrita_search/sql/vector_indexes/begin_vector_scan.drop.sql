DROP FUNCTION public.begin_vector_scan;
