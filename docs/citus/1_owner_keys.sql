-- Step 1 of 3: every key holds the owner, and what Citus does not carry is gone.
--
-- NOT RUN ON CITUS. A test runs it on plain PostgreSQL, with steps 2 and 3.
-- Run on the coordinator, in the migrated database, with all writers stopped, each step
-- as one transaction:
--     psql --single-transaction --set=ON_ERROR_STOP=1 --file=docs/citus/1_owner_keys.sql
-- There is no way back but the backup: take one first.
--
-- A unique key, and a foreign key between distributed tables, must hold the distribution
-- column, and that column is never NULL. Shared rows, whose owner is NULL until now, get
-- the owner 0, which no person has.

LOCK TABLE public.search_documents, public.embeddings, public.embedding_refusals
    IN ACCESS EXCLUSIVE MODE;

ALTER TABLE public.embeddings
DROP CONSTRAINT embeddings_document_id_fkey,
DROP CONSTRAINT embeddings_embedding_model_fkey;
ALTER TABLE public.embedding_refusals
DROP CONSTRAINT embedding_refusals_document_id_fkey,
DROP CONSTRAINT embedding_refusals_embedding_model_fkey;

-- Triggers may only touch the row at hand and reference tables: what copies between
-- documents and vectors is done by owner_upsert() of step 3 instead, and cached answers
-- are no longer told of writes, so CACHE_SECONDS must be 0.
DO $$
DECLARE
    _trigger record;
BEGIN
    FOR _trigger IN
        SELECT t.tgname, t.tgrelid::regclass AS relation
        FROM pg_trigger AS t
        WHERE t.tgrelid IN ('public.search_documents'::regclass, 'public.embeddings'::regclass)
            AND NOT t.tgisinternal
            AND t.tgname NOT IN ('search_documents_keywords', 'search_documents_content_hash')
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', _trigger.tgname, _trigger.relation);
    END LOOP;
END;
$$;

UPDATE public.search_documents SET user_id = 0 WHERE user_id IS NULL;
UPDATE public.embeddings SET user_id = 0 WHERE user_id IS NULL;

ALTER TABLE public.search_documents
ALTER COLUMN user_id SET DEFAULT 0,
ALTER COLUMN user_id SET NOT NULL,
DROP CONSTRAINT search_documents_pkey,
DROP CONSTRAINT search_documents_source_key,
ADD CONSTRAINT search_documents_pkey PRIMARY KEY (user_id, id),
ADD CONSTRAINT search_documents_source_key
UNIQUE (user_id, source_table, source_id, chunk_index);

ALTER TABLE public.embeddings
ALTER COLUMN user_id SET DEFAULT 0,
ALTER COLUMN user_id SET NOT NULL,
DROP CONSTRAINT embeddings_pkey,
DROP CONSTRAINT embeddings_document_model_key,
ADD CONSTRAINT embeddings_pkey PRIMARY KEY (user_id, id),
ADD CONSTRAINT embeddings_document_model_key UNIQUE (user_id, document_id, embedding_model);
