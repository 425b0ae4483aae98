DROP TABLE public.retrieval_configs;
