-- keyword_query(text, language) -> (terms, candidates, restriction)
--
-- Promises   terms        sparsevec of the query: for each lexeme
--                           qtf * ln(1 + (N - df + 0.5) / (df + 0.5)),
--                         qtf its occurrences in the query, df and N from
--                         keyword_statistics and keyword_corpora. The negative
--                         inner product with keyword_vector is minus the BM25
--                         score: Robertson and Zaragoza 2009, with qtf as weight
--                         (their k3 = infinity).
--            candidates   tsquery that proposes documents: any of the lexemes,
--                         rarest first, until their summed df passes the
--                         budget of search_settings, but at least until
--                         candidate_pool documents are proposed; the commoner
--                         ones still score. NULL where the text has no lexeme.
--            restriction  tsquery of the quoted phrases and -negations of the
--                         text (websearch_to_tsquery), NULL without any.
--            Never raises for a text, however long or odd; SE008 for an unknown
--            language. NULL language means the default one.
-- Called by  hybrid_search.
-- Volatility STABLE.

CREATE FUNCTION public.keyword_query(
    p_text text,
    p_language text DEFAULT NULL,
    OUT terms sparsevec,
    OUT candidates tsquery,
    OUT restriction tsquery
)
RETURNS record
LANGUAGE plpgsql
STABLE
SET search_path = public, pg_temp
AS $$
DECLARE
    -- A phrase with its quotes, or a word, behind a minus that begins a word.
    _negation CONSTANT text := '(?<!\S)-("[^"]*"|[^\s"-]\S*)';
    _settings search_settings;
    _configuration regconfig;
    _text text := keyword_text(left(p_text, 50000));
    _operators text;
    _documents double precision;
BEGIN
    SELECT s.* INTO _settings FROM search_settings AS s;
    p_language := coalesce(p_language, _settings.default_language);
    _configuration := text_search_language(p_language);
    p_language := _configuration::text;

    -- websearch_to_tsquery would demand every plain word as well, so it gets
    -- only what restricts.
    IF _text ~ '["-]' THEN
        SELECT string_agg(m[1], ' ') INTO _operators
        FROM regexp_matches(_text, '(' || _negation || '|"[^"]*")', 'g') AS m;
        IF _operators IS NOT NULL THEN
            -- A phrase is a tree as deep as it has words: 14,500 of them exhausted
            -- the stack at the default max_stack_depth.
            restriction := websearch_to_tsquery(_configuration, left(_operators, 10000));
            IF numnode(restriction) = 0 THEN
                restriction := NULL;
            END IF;
            _text := regexp_replace(_text, _negation, ' ', 'g');
        END IF;
    END IF;

    SELECT c.documents INTO _documents FROM keyword_corpora AS c WHERE c.language = p_language;

    WITH lexeme AS (
        SELECT
            u.lexeme,
            cardinality(u.positions) AS qtf,
            coalesce(s.document_frequency, 0) AS df,
            -- The counts are of the last refresh; N below df would make a NaN.
            greatest(coalesce(_documents, 0), coalesce(s.document_frequency, 0)) AS n
        FROM unnest(to_tsvector(_configuration, _text)) AS u
        LEFT JOIN keyword_statistics AS s ON s.language = p_language AND s.lexeme = u.lexeme
        -- Words that no document holds come last: in an overlong text they would
        -- push out those that some do.
        ORDER BY coalesce(s.document_frequency, 0) = 0, df, u.lexeme
        LIMIT _settings.keyword_max_terms
    ),
    ranked AS (
        SELECT
            l.*,
            sum(l.df) OVER (ORDER BY l.df, l.lexeme) AS summed_df
        FROM lexeme AS l
    ),
    component AS (
        SELECT
            lexeme_index(r.lexeme) AS i,
            sum(r.qtf * ln(1 + (r.n - r.df + 0.5) / (r.df + 0.5)))::real AS weight
        FROM ranked AS r
        GROUP BY 1
    )
    SELECT
        (SELECT '{' || string_agg(c.i || ':' || c.weight, ',') || '}/268435456' FROM component AS c)::sparsevec,
        string_agg(quote_lexeme(r.lexeme), ' | ') FILTER (
            WHERE r.summed_df <= _settings.keyword_candidate_budget
                OR r.summed_df - r.df < _settings.candidate_pool
        )::tsquery
    INTO terms, candidates
    FROM ranked AS r;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.keyword_query FROM PUBLIC;

COMMENT ON FUNCTION public.keyword_query IS
    'The keyword side of a query: BM25 term weights, the tsquery that proposes candidates, and what phrases and negations demand.';
