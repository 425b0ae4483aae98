DROP FUNCTION public.text_search_language;
