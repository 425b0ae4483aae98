DROP TABLE public.embedding_refusals;
