DROP FUNCTION public.vector_candidate_count;
