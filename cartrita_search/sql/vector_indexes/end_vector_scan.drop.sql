DROP FUNCTION public.end_vector_scan;
