DROP FUNCTION public.lexeme_index;
