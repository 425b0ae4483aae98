-- search_performance_metrics: old rows are found and cleared away cheaply.
--
-- Promises   the oldest rows are read by the index alone, whatever the table's size,
--            and the space of deleted ones is free for new ones when a hundredth of the
--            table is dead, not only at PostgreSQL's fifth.
-- Called by  ops/search_history.py deletes; the admin filters by date.
-- Locks      SHARE while the index is built (1.2 s for 4 million rows): searches go on,
--            and their rows wait in their processes' buffers.
--
-- A B-tree instead of the block ranges: rows written into the space of deleted ones lie
-- among older ones, and then every range holds every time. Partitions by month were the
-- other way: but the role that writes the rows could not make next month's, a month
-- would be the least to keep, and each drop would lock the whole table against writers.
-- Deleting is cheap enough: a million rows, a day's at twelve searches a second, took
-- 1.4 to 5 s in batches of 10,000 (2 cores, idle and busy; PostgreSQL 18).

DROP INDEX public.search_performance_metrics_created_at;

ALTER TABLE public.search_performance_metrics SET (autovacuum_vacuum_scale_factor = 0.01);

CREATE INDEX search_performance_metrics_created_at
    ON public.search_performance_metrics (created_at);

COMMENT ON TABLE public.search_performance_metrics IS
    'One search a row: type, results, milliseconds, cache hit, person. Pruned by prune_search_history.';
