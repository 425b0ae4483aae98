-- keyword_statistics: how many documents of a language hold a lexeme.
--
-- Promises   document frequencies as of the last refresh_keyword_statistics().
--            A lexeme without a row is new since then, and counts as rare.
-- Called by  keyword_query.

CREATE TABLE public.keyword_statistics (
    language text NOT NULL,
    lexeme text NOT NULL,
    document_frequency bigint NOT NULL,

    PRIMARY KEY (language, lexeme),
    CONSTRAINT keyword_statistics_document_frequency CHECK (document_frequency > 0)
);

COMMENT ON TABLE public.keyword_statistics IS
    'Document frequency of a lexeme in the corpus of its language, for BM25.';
