DROP FUNCTION public.upsert_embedding(
    text, text, vector, text, text, jsonb, text, text, bigint, integer, text, text []
);
