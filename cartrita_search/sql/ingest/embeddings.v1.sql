-- embeddings: THE vector table. One vector of one chunk under one model.
--
-- Promises   one row for a document and model; source_table, source_id,
--            chunk_index, user_id and metadata equal the document's (triggers).
-- Called by  upsert_embedding and bulk ingest write; the vector leg reads.
--
-- The column has no fixed dimension: each model has its own, and its own
-- partial expression index (see vector_indexes/). The copied columns are there
-- because an index scan that had to join the document for every filter would
-- lose the order that it is scanned for.

CREATE TABLE public.embeddings (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    document_id uuid NOT NULL
        REFERENCES public.search_documents (id) ON DELETE CASCADE,
    source_table text NOT NULL,
    source_id text NOT NULL,
    chunk_index integer NOT NULL DEFAULT 0,
    user_id bigint,
    embedding_model text NOT NULL REFERENCES public.embedding_models (name),
    embedding vector NOT NULL,
    content_hash text NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT embeddings_document_model_key UNIQUE (document_id, embedding_model)
);

-- Filters by owner and by source that keep few rows are answered exactly from
-- these; the planner weighs them against the vector index. The first also
-- counts a model's rows without reading the vectors.
CREATE INDEX embeddings_model_user_id ON public.embeddings (embedding_model, user_id);
CREATE INDEX embeddings_model_source ON public.embeddings (embedding_model, source_table);

COMMENT ON TABLE public.embeddings IS
    'The unified vector table: one vector of one chunk under one embedding model.';
