-- search_documents, the keyword side: its two columns and the index.
--
-- Promises   columns for what search_documents_keywords() computes.
-- Locks      ACCESS EXCLUSIVE for the instant of ADD COLUMN (no rewrite: both
--            columns begin as NULL); SHARE while the index is built.

ALTER TABLE public.search_documents
ADD COLUMN search_vector tsvector,
ADD COLUMN keyword_vector sparsevec(268435456),
-- Scoring reads keyword_vector of thousands of candidates and nothing else that
-- is large: MAIN keeps it in the row itself, and the low target sends the other
-- long values out, so that a page holds more rows.
ALTER COLUMN keyword_vector SET STORAGE MAIN,
SET (toast_tuple_target = 256);

-- A search reads the whole pending list of a GIN index: 4 MB of it, the default,
-- turned a query of 0.4 ms into one of 0.8 s. 512 kB bounds that, and batches
-- enough insertions for loads to stay fast.
CREATE INDEX search_documents_search_vector
    ON public.search_documents USING gin (search_vector)
    WITH (gin_pending_list_limit = 512);

COMMENT ON COLUMN public.search_documents.search_vector IS
    'Lexemes of title (weight A) and content: proposes keyword candidates through its GIN index.';
COMMENT ON COLUMN public.search_documents.keyword_vector IS
    'BM25 term weights (see keyword_vector()): scores keyword candidates.';
