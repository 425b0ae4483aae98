-- search_model(name, query vector) -> embedding_models
--
-- Promises   the model to search under: the named one or the default, checked
--            against the query vector, if there is one. SE003 unknown model, SE001 dimension,
--            SE002 vector without direction.
-- Called by  similarity_search, hybrid_search.
-- Volatility STABLE.

CREATE FUNCTION public.search_model(p_name text, p_query vector)
RETURNS embedding_models
LANGUAGE plpgsql
STABLE
PARALLEL SAFE
SET search_path = public, pg_temp
AS $$
DECLARE
    _model embedding_models;
BEGIN
    IF p_name IS NULL THEN
        SELECT m.* INTO _model FROM embedding_models AS m WHERE m.is_default;
    ELSE
        SELECT m.* INTO _model FROM embedding_models AS m WHERE m.name = p_name;
    END IF;
    IF NOT FOUND THEN
        IF p_name IS NULL THEN
            RAISE EXCEPTION 'No embedding model was named, and there is no default model yet.'
                USING ERRCODE = 'SE003', HINT = 'Store a vector first: upsert_embedding() registers its model.';
        END IF;
        RAISE EXCEPTION 'There is no embedding model "%".', left(p_name, 200)
            USING ERRCODE = 'SE003', HINT = 'SELECT name FROM embedding_models lists them.';
    END IF;
    PERFORM check_vector(p_query, _model.dimensions, _model.name);
    RETURN _model;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.search_model FROM PUBLIC;

COMMENT ON FUNCTION public.search_model IS
    'The named or default embedding model, checked against the query vector.';
