DROP FUNCTION public.quote_lexeme;
