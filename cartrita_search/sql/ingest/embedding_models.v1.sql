-- embedding_models: the registry of embedding models, and of the vector index
-- that each model has at present.
--
-- Promises   at most one default model; a model's dimension never changes
--            (embedding_models_keep_dimensions).
-- Called by  upsert_embedding registers; rebuild_vector_indexes records;
--            every search reads.

CREATE TABLE public.embedding_models (
    name text PRIMARY KEY,
    dimensions integer NOT NULL,
    is_default boolean NOT NULL DEFAULT false,

    -- The index in place. 'exact' means none: a sequential scan answers.
    index_method text NOT NULL DEFAULT 'exact',
    index_storage text NOT NULL DEFAULT 'vector',
    hnsw_m integer,
    hnsw_ef_construction integer,
    ivfflat_lists integer,

    -- The search width that met the target when the index was measured.
    ef_search integer,
    probes integer,
    target_recall double precision NOT NULL DEFAULT 0.95,
    measured_recall double precision,
    indexed_rows bigint,
    indexed_at timestamptz,

    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT embedding_models_name_length CHECK (length(name) BETWEEN 1 AND 200),
    -- 16,000 is the most that a value of type vector holds.
    CONSTRAINT embedding_models_dimensions CHECK (dimensions BETWEEN 1 AND 16000),
    CONSTRAINT embedding_models_index_method CHECK (index_method IN ('exact', 'hnsw', 'ivfflat')),
    CONSTRAINT embedding_models_index_storage CHECK (index_storage IN ('vector', 'halfvec', 'bit')),
    CONSTRAINT embedding_models_target_recall CHECK (target_recall > 0 AND target_recall <= 1),
    CONSTRAINT embedding_models_measured_recall CHECK (measured_recall BETWEEN 0 AND 1)
);

CREATE UNIQUE INDEX embedding_models_one_default
    ON public.embedding_models (is_default) WHERE is_default;

COMMENT ON TABLE public.embedding_models IS
    'One embedding model a row: its dimension, whether it is the default, its vector index and the measured search width.';
