DROP FUNCTION public.vector_recall;
