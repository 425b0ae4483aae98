-- vector_index_name(model) -> text
--
-- Promises   the name of the model's index: readable, at most 58 bytes (room for
--            '__new' and '__old' within PostgreSQL's 63), and different for
--            different models whatever their names have in common.
-- Volatility IMMUTABLE; the body is bound at creation.

CREATE FUNCTION public.vector_index_name(p_model text)
RETURNS text
LANGUAGE sql
IMMUTABLE
PARALLEL SAFE
RETURN 'embeddings_'
    || trim('_' FROM left(regexp_replace(lower(p_model), '[^a-z0-9]+', '_', 'g'), 36))
    || '_' || left(md5(p_model), 8);

REVOKE EXECUTE ON FUNCTION public.vector_index_name FROM PUBLIC;

COMMENT ON FUNCTION public.vector_index_name IS
    'The name of the vector index of a model.';
