DROP FUNCTION public.search_generation;
