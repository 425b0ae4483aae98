-- keyword_text(text) -> text
--
-- Promises   the text as the keyword side reads it, of documents and of queries
--            alike: a dot between two letters becomes a space.
-- Called by  the trigger on search_documents, keyword_query.
-- Volatility IMMUTABLE; the body is bound at creation and can be inlined.
--
-- PostgreSQL's parser takes "pathlib.Path.rglob" and "end.Next" for names of
-- hosts, one lexeme each, which nobody finds by "rglob" or "next". Split, a name
-- is still found by its whole: all its parts match. Numbers keep their points.

CREATE FUNCTION public.keyword_text(p_text text)
RETURNS text
LANGUAGE sql
IMMUTABLE
PARALLEL SAFE
RETURN regexp_replace(p_text, '(?<=[[:alpha:]])\.(?=[[:alpha:]])', ' ', 'g');

REVOKE EXECUTE ON FUNCTION public.keyword_text FROM PUBLIC;

COMMENT ON FUNCTION public.keyword_text IS
    'The text as the keyword side reads it: dots inside words and dotted names become spaces.';
