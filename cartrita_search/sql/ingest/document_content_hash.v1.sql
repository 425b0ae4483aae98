-- document_content_hash(title, content) -> text
--
-- Promises   the hexadecimal SHA-256 of the UTF-8 bytes of title, a line feed
--            and content; NULL counts as the empty string. Any client can
--            compute the same value without the database.
-- Volatility IMMUTABLE. The body is bound when it is created, so no
--            search_path can change its meaning, and it can be inlined.

CREATE FUNCTION public.document_content_hash(p_title text, p_content text)
RETURNS text
LANGUAGE sql
IMMUTABLE
PARALLEL SAFE
RETURN encode(
    sha256(convert_to(coalesce(p_title, '') || E'\n' || coalesce(p_content, ''), 'UTF8')),
    'hex'
);

REVOKE EXECUTE ON FUNCTION public.document_content_hash FROM PUBLIC;

COMMENT ON FUNCTION public.document_content_hash IS
    'Hexadecimal SHA-256 of title, line feed, content in UTF-8: what tells a changed document from an unchanged one.';
