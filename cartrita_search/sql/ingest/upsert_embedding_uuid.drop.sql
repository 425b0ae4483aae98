DROP FUNCTION public.upsert_embedding(
    text, uuid, vector, text, text, jsonb, text, text, bigint, integer, text, text []
);
