DROP FUNCTION public.keyword_vector;
