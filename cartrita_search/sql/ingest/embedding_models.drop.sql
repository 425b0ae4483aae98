DROP TABLE public.embedding_models;
