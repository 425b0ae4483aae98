DROP TRIGGER follow_search_generation ON public.search_documents;
DROP TRIGGER follow_search_generation ON public.embeddings;
DROP TRIGGER follow_search_generation ON public.keyword_corpora;
DROP TRIGGER follow_search_generation ON public.keyword_statistics;
DROP TRIGGER follow_search_generation ON public.embedding_models;
DROP TRIGGER follow_search_generation ON public.search_settings;
DROP TRIGGER follow_search_generation ON public.schema_migrations;
DROP TRIGGER follow_search_generation ON public.retrieval_configs;
DROP FUNCTION public.follow_search_generation;
