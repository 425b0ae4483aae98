DROP FUNCTION public.make_search_filter;
