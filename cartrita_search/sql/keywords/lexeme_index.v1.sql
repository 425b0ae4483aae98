-- lexeme_index(lexeme) -> integer
--
-- Promises   the lexeme's component in a keyword vector, 1 to 268435456 (2^28):
--            the first 28 bits of its MD5. The same on every version and
--            platform, which hashtext() does not promise.
-- Volatility IMMUTABLE; the body is bound at creation and can be inlined.
--
-- Two lexemes share a component with probability 2^-28: among 100,000 lexemes
-- some 19 pairs do, and a document scores for both.

CREATE FUNCTION public.lexeme_index(p_lexeme text)
RETURNS integer
LANGUAGE sql
IMMUTABLE
PARALLEL SAFE
RETURN ('x' || left(md5(p_lexeme), 7))::bit(28)::integer + 1;

REVOKE EXECUTE ON FUNCTION public.lexeme_index FROM PUBLIC;

COMMENT ON FUNCTION public.lexeme_index IS
    'The component of a lexeme in a keyword vector: 28 bits of its MD5, plus one.';
