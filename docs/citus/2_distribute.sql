-- Step 2 of 3: the tables go to the workers, an owner's documents and vectors together.
--
-- NOT RUN ON CITUS. Citus 12 or newer; pgvector, of the same version, on every node:
--     CREATE EXTENSION vector;  CREATE EXTENSION citus;
-- The functions that the two remaining triggers call are distributed with them.

-- Of this session: the triggers only touch the row at hand and reference tables.
SET citus.enable_unsafe_triggers = on;

-- Small, read by every search, and written seldom: whole on every node.
SELECT create_reference_table('public.embedding_models');
SELECT create_reference_table('public.search_settings');
SELECT create_reference_table('public.retrieval_configs');
SELECT create_reference_table('public.keyword_corpora');
SELECT create_reference_table('public.keyword_statistics');

-- 128 shards: enough for as many workers, and few enough for one.
SET citus.shard_count = 128;
SELECT create_distributed_table('public.search_documents', 'user_id');
SELECT
    create_distributed_table(
        'public.embeddings', 'user_id', colocate_with => 'public.search_documents'
    );

ALTER TABLE public.embeddings
ADD CONSTRAINT embeddings_document_id_fkey
FOREIGN KEY (user_id, document_id)
REFERENCES public.search_documents (user_id, id) ON DELETE CASCADE,
ADD CONSTRAINT embeddings_embedding_model_fkey
FOREIGN KEY (embedding_model) REFERENCES public.embedding_models (name);

-- Shared rows (owner 0) take part in every search. Where they are many, a worker of their
-- own keeps them apart from everybody else's:
--     SELECT isolate_tenant_to_new_shard('public.search_documents', 0, 'CASCADE');
