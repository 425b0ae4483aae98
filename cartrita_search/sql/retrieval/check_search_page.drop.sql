DROP FUNCTION public.check_search_page;
