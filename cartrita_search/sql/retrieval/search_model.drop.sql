DROP FUNCTION public.search_model;
