DROP FUNCTION public.keyword_query;
