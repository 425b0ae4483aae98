DROP FUNCTION public.count_embedding_work(text, text);
