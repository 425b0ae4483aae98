DROP TRIGGER log_cache_invalidation ON public.retrieval_configs;
DROP TRIGGER log_cache_invalidation ON public.search_settings;
DROP TRIGGER log_cache_invalidation ON public.embedding_models;
DROP FUNCTION public.log_cache_invalidation;
