DROP INDEX public.cache_invalidation_log_created_at;

ALTER TABLE public.cache_invalidation_log RESET (autovacuum_vacuum_scale_factor);

CREATE INDEX cache_invalidation_log_created_at
    ON public.cache_invalidation_log USING brin (created_at);

COMMENT ON TABLE public.cache_invalidation_log IS
    'One cache invalidation a row: what, why, by whom, when.';
