DROP FUNCTION public.vector_candidates_sql;
