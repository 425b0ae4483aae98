DROP INDEX public.search_performance_metrics_created_at;

ALTER TABLE public.search_performance_metrics RESET (autovacuum_vacuum_scale_factor);

CREATE INDEX search_performance_metrics_created_at
    ON public.search_performance_metrics USING brin (created_at);

COMMENT ON TABLE public.search_performance_metrics IS
    'One search a row: type, results, milliseconds, cache hit, person.';
