-- keyword_corpora: size and mean length of the corpus of one language.
--
-- Promises   one row a language that has documents, as of the last
--            refresh_keyword_statistics(). average_length is the very figure
--            that the stored keyword vectors were computed with.
-- Called by  keyword_query (document count), the trigger on search_documents
--            (average length).

CREATE TABLE public.keyword_corpora (
    language text PRIMARY KEY,
    documents bigint NOT NULL,
    average_length double precision NOT NULL,
    refreshed_at timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT keyword_corpora_documents CHECK (documents >= 0),
    CONSTRAINT keyword_corpora_average_length CHECK (average_length >= 0)
);

COMMENT ON TABLE public.keyword_corpora IS
    'One language a row: its document count and mean document length, for BM25.';
COMMENT ON COLUMN public.keyword_corpora.average_length IS
    'Mean number of indexed words of a document, a title''s words counting twice.';
