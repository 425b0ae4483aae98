DROP FUNCTION public.similarity_search;
