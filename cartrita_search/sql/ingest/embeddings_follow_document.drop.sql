DROP TRIGGER embeddings_follow_document ON public.embeddings;
DROP FUNCTION public.embeddings_follow_document;
