-- quote_lexeme(lexeme) -> text
--
-- Promises   the lexeme in the quotes of tsquery's input syntax, so that none of
--            its characters is taken for an operator.
-- Volatility IMMUTABLE; the body is bound at creation and can be inlined.

CREATE FUNCTION public.quote_lexeme(p_lexeme text)
RETURNS text
LANGUAGE sql
IMMUTABLE
PARALLEL SAFE
RETURN '''' || replace(replace(p_lexeme, '\', '\\'), '''', '''''') || '''';

REVOKE EXECUTE ON FUNCTION public.quote_lexeme FROM PUBLIC;

COMMENT ON FUNCTION public.quote_lexeme IS
    'A lexeme quoted for tsquery input.';
