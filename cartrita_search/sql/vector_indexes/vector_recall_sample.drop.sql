DROP FUNCTION public.vector_recall_sample;
