DROP FUNCTION public.register_embedding_model;
