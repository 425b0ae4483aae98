DROP FUNCTION public.invalidate_search_cache;
