DROP VIEW public.vector_search_stats;
