DROP FUNCTION public.default_language;
