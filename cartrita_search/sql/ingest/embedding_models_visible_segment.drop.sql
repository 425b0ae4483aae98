ALTER TABLE public.embedding_models DROP COLUMN visible_segment;
