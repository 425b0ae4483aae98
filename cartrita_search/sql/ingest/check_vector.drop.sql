DROP FUNCTION public.check_vector;
