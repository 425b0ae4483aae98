DROP TABLE public.cache_invalidation_log;
