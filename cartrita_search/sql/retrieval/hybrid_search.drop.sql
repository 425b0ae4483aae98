DROP FUNCTION public.hybrid_search;
