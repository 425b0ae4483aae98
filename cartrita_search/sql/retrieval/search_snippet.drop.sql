DROP FUNCTION public.search_snippet;
