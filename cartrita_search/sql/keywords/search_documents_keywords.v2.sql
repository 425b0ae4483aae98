-- search_documents_keywords(): trigger function and its trigger.
--
-- Promises   search_vector and keyword_vector follow title, content and
--            language, whatever writes the row (COPY included). A document
--            too long for either (1 MB of lexemes, 16,000 different ones) is
--            indexed by its first part and its heaviest lexemes, and its
--            metadata then says {"keyword_index": "partial"}. None is refused.
-- Called by  the trigger of the same name, BEFORE INSERT OR UPDATE, per row, but for
--            new rows that merge_ingest_batch has computed both vectors of: it says
--            so by a parameter that it sets for its one INSERT.
-- Locks      none beyond the row being written.

CREATE FUNCTION public.search_documents_keywords()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
DECLARE
    _language CONSTANT regconfig := NEW.language::regconfig;
    _title CONSTANT text := keyword_text(left(NEW.title, 10000));
    _content CONSTANT text := keyword_text(NEW.content);
    _length integer := length(_content);
    _average_length double precision;
    _partial boolean;
BEGIN
    -- 'English' and 'pg_catalog.english' are one language, with one statistic.
    NEW.language := _language::text;

    -- A word of n bytes takes at most 2n + 4 in a tsvector, so this much always
    -- fits and needs no subtransaction.
    IF octet_length(_content) + octet_length(_title) <= 300000 THEN
        NEW.search_vector := setweight(to_tsvector(_language, _title), 'A')
            || to_tsvector(_language, _content);
    ELSE
        LOOP
            BEGIN
                NEW.search_vector := setweight(to_tsvector(_language, _title), 'A')
                    || to_tsvector(_language, left(_content, _length));
                EXIT;
            EXCEPTION
                WHEN program_limit_exceeded THEN
                    _length := _length / 2;
            END;
        END LOOP;
    END IF;

    SELECT c.average_length INTO _average_length
    FROM keyword_corpora AS c
    WHERE c.language = NEW.language;
    NEW.keyword_vector := keyword_vector(NEW.search_vector, _average_length);

    _partial := _length < length(_content)
        OR length(_title) < length(NEW.title)
        OR length(NEW.search_vector) > 16000;
    IF _partial THEN
        NEW.metadata := NEW.metadata || '{"keyword_index": "partial"}';
    ELSIF NEW.metadata ? 'keyword_index' THEN
        NEW.metadata := NEW.metadata - 'keyword_index';
    END IF;
    RETURN NEW;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.search_documents_keywords FROM PUBLIC;

COMMENT ON FUNCTION public.search_documents_keywords IS
    'Keeps search_vector and keyword_vector of search_documents in step with title, content and language.';

CREATE TRIGGER search_documents_keywords
    BEFORE INSERT OR UPDATE OF title, content, language, metadata
    ON public.search_documents
    FOR EACH ROW
    WHEN (
        NEW.keyword_vector IS NULL
        OR current_setting('cartrita_search.merging', true) IS DISTINCT FROM 'on'
    )
    EXECUTE FUNCTION public.search_documents_keywords();
