DROP FUNCTION public.search_filter_rows;
