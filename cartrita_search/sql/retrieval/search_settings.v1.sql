-- search_settings: one row of thresholds and budgets, for every client alike.
--
-- Promises   exactly one row, each value within its bounds.
-- Called by  searches, vector_index_plan, rebuild_vector_indexes. Edited by
--            staff in the admin or by UPDATE.
--
-- A table rather than custom configuration parameters: ALTER DATABASE ... SET
-- of a placeholder needs a superuser, which managed PostgreSQL does not give.

CREATE TABLE public.search_settings (
    id integer PRIMARY KEY DEFAULT 1,
    default_language text NOT NULL DEFAULT 'english',
    candidate_pool integer NOT NULL DEFAULT 100,
    keyword_candidate_budget integer NOT NULL DEFAULT 5000,
    keyword_max_terms integer NOT NULL DEFAULT 128,
    rrf_k integer NOT NULL DEFAULT 60,
    exact_scan_max_rows integer NOT NULL DEFAULT 1000,
    index_memory_budget_mb integer,
    hnsw_m integer NOT NULL DEFAULT 16,
    hnsw_ef_construction integer NOT NULL DEFAULT 64,

    CONSTRAINT search_settings_one_row CHECK (id = 1),
    CONSTRAINT search_settings_candidate_pool CHECK (candidate_pool BETWEEN 10 AND 10000),
    CONSTRAINT search_settings_keyword_candidate_budget
        CHECK (keyword_candidate_budget BETWEEN 100 AND 10000000),
    CONSTRAINT search_settings_keyword_max_terms CHECK (keyword_max_terms BETWEEN 1 AND 1000),
    CONSTRAINT search_settings_rrf_k CHECK (rrf_k BETWEEN 1 AND 10000),
    CONSTRAINT search_settings_exact_scan_max_rows CHECK (exact_scan_max_rows >= 0),
    CONSTRAINT search_settings_index_memory_budget_mb CHECK (index_memory_budget_mb >= 1),
    -- pgvector's own bounds.
    CONSTRAINT search_settings_hnsw_m CHECK (hnsw_m BETWEEN 2 AND 100),
    CONSTRAINT search_settings_hnsw_ef_construction
        CHECK (hnsw_ef_construction BETWEEN 4 AND 1000 AND hnsw_ef_construction >= 2 * hnsw_m)
);

INSERT INTO public.search_settings DEFAULT VALUES;

COMMENT ON TABLE public.search_settings IS
    'One row: thresholds and budgets of search and of index planning, shared by all clients.';
COMMENT ON COLUMN public.search_settings.default_language IS
    'Text search configuration of documents and queries that name none.';
COMMENT ON COLUMN public.search_settings.candidate_pool IS
    'Candidates that each leg of hybrid_search proposes, at least; never fewer than four times match_count.';
COMMENT ON COLUMN public.search_settings.keyword_candidate_budget IS
    'Sum of document frequencies up to which query lexemes, rarest first, propose candidates.';
COMMENT ON COLUMN public.search_settings.keyword_max_terms IS
    'Lexemes of a query that count, rarest first.';
COMMENT ON COLUMN public.search_settings.rrf_k IS
    'The constant k of reciprocal rank fusion, 1 / (k + rank).';
COMMENT ON COLUMN public.search_settings.exact_scan_max_rows IS
    'Up to this many vectors of a model the exact scan is faster than any index.';
COMMENT ON COLUMN public.search_settings.index_memory_budget_mb IS
    'Memory for building an HNSW graph, in MiB; NULL means maintenance_work_mem of the session that builds.';
COMMENT ON COLUMN public.search_settings.hnsw_m IS
    'Links of a node of an HNSW graph (level 0 has twice as many).';
COMMENT ON COLUMN public.search_settings.hnsw_ef_construction IS
    'Candidates kept while an HNSW graph is built.';
