-- search_snippet(content, query text, language) -> text
--
-- Promises   the parts of the content that speak of the query, as HTML: everything
--            escaped, the query's words between <mark> and </mark>, fragments
--            joined by " ... ". Where no word of the query occurs, the beginning.
-- Raises     SE008 for an unknown language.
-- Called by  applications, for the hits that are shown: it parses each content.
-- Volatility STABLE.
--
-- ts_headline does not escape, so it marks with control characters that no HTML
-- text may contain anyway; they are taken out of the content first, and become
-- the tags after escaping.

CREATE FUNCTION public.search_snippet(
    p_content text,
    p_query_text text,
    p_language text DEFAULT NULL
)
RETURNS text
LANGUAGE plpgsql
STABLE
SET search_path = public, pg_temp
-- An empty query is no news to the caller.
SET client_min_messages = warning
AS $$
DECLARE
    _configuration CONSTANT regconfig
        := text_search_language(coalesce(p_language, default_language()));
    -- A headline is looked for in the first part only: its cost grows with the text.
    _content CONSTANT text := translate(left(p_content, 50000), E'\x01\x02', '  ');
    _query tsquery;
    _headline text;
BEGIN
    SELECT string_agg(quote_lexeme(u.lexeme), ' | ')::tsquery INTO _query
    FROM (
        SELECT t.lexeme
        FROM unnest(to_tsvector(_configuration, keyword_text(left(p_query_text, 50000)))) AS t
        LIMIT 200
    ) AS u;
    _headline := ts_headline(
        _configuration, _content, coalesce(_query, ''::tsquery),
        format('StartSel=%s, StopSel=%s, MaxFragments=2, MinWords=8, MaxWords=30, FragmentDelimiter=" ... "',
            E'\x01', E'\x02'));
    _headline := replace(replace(replace(replace(replace(_headline,
        '&', '&amp;'), '<', '&lt;'), '>', '&gt;'), '"', '&quot;'), '''', '&#x27;');
    RETURN replace(replace(_headline, E'\x01', '<mark>'), E'\x02', '</mark>');
END;
$$;

REVOKE EXECUTE ON FUNCTION public.search_snippet FROM PUBLIC;

COMMENT ON FUNCTION public.search_snippet IS
    'The parts of a text that speak of a query, as escaped HTML with the query''s words marked.';
