-- cache_invalidation_log: old rows are found and cleared away cheaply.
--
-- Promises   as sql/metrics/search_performance_metrics_retention does, where the reasons
--            stand.
-- Called by  ops/search_history.py deletes.
-- Locks      SHARE while the index is built: invalidations wait for it.

DROP INDEX public.cache_invalidation_log_created_at;

ALTER TABLE public.cache_invalidation_log SET (autovacuum_vacuum_scale_factor = 0.01);

CREATE INDEX cache_invalidation_log_created_at
    ON public.cache_invalidation_log (created_at);

COMMENT ON TABLE public.cache_invalidation_log IS
    'One cache invalidation a row: what, why, by whom, when. Pruned by prune_search_history.';
