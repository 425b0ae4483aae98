DROP FUNCTION public.claim_embedding_work(text, integer, uuid, text, timestamptz);
