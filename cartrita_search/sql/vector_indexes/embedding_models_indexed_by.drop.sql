ALTER TABLE public.embedding_models DROP COLUMN indexed_by;
