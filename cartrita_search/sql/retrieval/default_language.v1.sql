-- default_language() -> text
--
-- Promises   the text search configuration of documents and queries that name
--            none, from search_settings.
-- Volatility STABLE; reads one row.

CREATE FUNCTION public.default_language()
RETURNS text
LANGUAGE sql
STABLE
PARALLEL SAFE
RETURN (SELECT s.default_language FROM public.search_settings AS s);

REVOKE EXECUTE ON FUNCTION public.default_language FROM PUBLIC;

COMMENT ON FUNCTION public.default_language IS
    'The text search configuration that search_settings names as the default.';
