ALTER TABLE public.embeddings DROP COLUMN segment;

-- The indexes that were partial by it went with it.
UPDATE public.embedding_models SET index_method = 'exact'
WHERE to_regclass(format('public.%I', public.vector_index_name(name))) IS NULL;
