-- refresh_keyword_statistics() -> (language, documents, lexemes,
--                                  average_length, rewritten), a row a language
--
-- Promises   document frequencies, document counts and mean lengths are those of
--            the documents visible now. Where the mean length moved by more than
--            1 % since the keyword vectors were computed (a first load always
--            does), all vectors of the language are computed anew, so that one
--            average holds for the whole language.
-- Called by  bulk loads, rebuild_vector_indexes, a nightly job.
-- Locks      one refresh at a time (SHARE ROW EXCLUSIVE on keyword_corpora);
--            searches go on. Where vectors are rewritten, writers of documents
--            wait until it commits (SHARE ROW EXCLUSIVE on search_documents).
-- Cost       reads every search_vector: 4 s for 200,000 documents of 60 words,
--            and several times that where vectors are rewritten.

CREATE FUNCTION public.refresh_keyword_statistics()
RETURNS TABLE (
    language text,
    documents bigint,
    lexemes bigint,
    average_length double precision,
    rewritten bigint
)
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    _language text;
    _source text;
    _words double precision;
    _former double precision;
BEGIN
    LOCK TABLE keyword_corpora IN SHARE ROW EXCLUSIVE MODE;

    FOR _language IN
        SELECT d.language FROM search_documents AS d
        UNION
        SELECT c.language FROM keyword_corpora AS c
        ORDER BY 1
    LOOP
        _source := format(
            'SELECT search_vector FROM public.search_documents WHERE language = %L', _language);
        SELECT count(*) INTO documents FROM search_documents AS d WHERE d.language = _language;

        -- Only what changed is written: after the first load that is little.
        WITH counted AS MATERIALIZED (
            SELECT t.word, t.ndoc, t.nentry FROM ts_stat(_source) AS t
        ),
        written AS (
            INSERT INTO keyword_statistics AS s (language, lexeme, document_frequency)
            SELECT _language, c.word, c.ndoc FROM counted AS c
            ON CONFLICT (language, lexeme) DO UPDATE
            SET document_frequency = excluded.document_frequency
            WHERE s.document_frequency <> excluded.document_frequency
        ),
        removed AS (
            DELETE FROM keyword_statistics AS s
            WHERE s.language = _language
                AND NOT EXISTS (SELECT FROM counted AS c WHERE c.word = s.lexeme)
        )
        SELECT count(*), coalesce(sum(c.nentry), 0) INTO lexemes, _words FROM counted AS c;

        -- The title's words count twice, here as in keyword_vector().
        SELECT _words + coalesce(sum(t.nentry), 0) INTO _words FROM ts_stat(_source, 'A') AS t;
        average_length := _words / nullif(documents, 0);

        SELECT c.average_length INTO _former FROM keyword_corpora AS c WHERE c.language = _language;
        rewritten := 0;
        IF documents = 0 THEN
            DELETE FROM keyword_corpora AS c WHERE c.language = _language;
        ELSE
            IF _former > 0 AND abs(average_length / _former - 1) <= 0.01 THEN
                average_length := _former;
            END IF;
            INSERT INTO keyword_corpora AS c (language, documents, average_length)
            VALUES (
                _language, refresh_keyword_statistics.documents,
                refresh_keyword_statistics.average_length
            )
            ON CONFLICT ON CONSTRAINT keyword_corpora_pkey DO UPDATE
            SET documents = excluded.documents,
                average_length = excluded.average_length,
                refreshed_at = clock_timestamp();
            IF average_length IS DISTINCT FROM _former THEN
                -- Row by row against a bulk load this could deadlock, and a row
                -- written meanwhile would keep the former average.
                LOCK TABLE search_documents IN SHARE ROW EXCLUSIVE MODE;
                UPDATE search_documents AS d
                SET keyword_vector = keyword_vector(
                    d.search_vector, refresh_keyword_statistics.average_length)
                WHERE d.language = _language;
                GET DIAGNOSTICS rewritten = ROW_COUNT;
            END IF;
        END IF;

        language := _language;
        RETURN NEXT;
    END LOOP;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.refresh_keyword_statistics FROM PUBLIC;

COMMENT ON FUNCTION public.refresh_keyword_statistics IS
    'Recounts document frequencies and lengths for BM25, and recomputes keyword vectors where the mean length moved.';
