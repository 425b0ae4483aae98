DROP FUNCTION public.vector_index_facts;
