DROP FUNCTION public.search_filter_sql;
