-- search_documents: one chunk of one row of some source table.
--
-- Promises   (source_table, source_id, chunk_index) names a chunk once;
--            content_hash is never NULL (a trigger fills it).
-- Called by  upsert_embedding, bulk ingest, both legs of hybrid_search.
--
-- source_id is text so that integer and UUID keys both fit. user_id is the
-- owner; NULL means shared with everybody. It has no foreign key: the table of
-- people belongs to the application, which may not be Django.
--
-- language is the name of a text search configuration, kept as text and not as
-- regconfig: pg_upgrade refuses databases that store regconfig in a table.

CREATE TABLE public.search_documents (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    source_table text NOT NULL,
    source_id text NOT NULL,
    chunk_index integer NOT NULL DEFAULT 0,
    user_id bigint,
    title text NOT NULL DEFAULT '',
    content text NOT NULL DEFAULT '',
    tags text [] NOT NULL DEFAULT '{}',
    language text NOT NULL DEFAULT 'english',
    metadata jsonb NOT NULL DEFAULT '{}',
    content_hash text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT search_documents_source_key UNIQUE (source_table, source_id, chunk_index),
    -- A B-tree entry holds some 2,700 bytes; these keep the key well inside.
    CONSTRAINT search_documents_source_table_length CHECK (length(source_table) BETWEEN 1 AND 128),
    CONSTRAINT search_documents_source_id_length CHECK (length(source_id) BETWEEN 1 AND 500),
    CONSTRAINT search_documents_chunk_index CHECK (chunk_index >= 0),
    CONSTRAINT search_documents_metadata_object CHECK (jsonb_typeof(metadata) = 'object')
);

-- A person's own documents are few among all: this lets a filter by owner
-- skip the rest, and answers "delete all that belongs to them".
CREATE INDEX search_documents_user_id ON public.search_documents (user_id)
    WHERE user_id IS NOT NULL;

COMMENT ON TABLE public.search_documents IS
    'One chunk of one source row: text, owner, tags, language and metadata, whatever model embeds it.';
