DROP TRIGGER embeddings_check_inserted ON public.embeddings;
DROP FUNCTION public.embeddings_check_inserted;
