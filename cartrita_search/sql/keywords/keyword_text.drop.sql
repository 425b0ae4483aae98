DROP FUNCTION public.keyword_text;
