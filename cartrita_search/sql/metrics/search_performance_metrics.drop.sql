DROP TABLE public.search_performance_metrics;
