ALTER TABLE public.embedding_models DROP COLUMN preferred_storage;
