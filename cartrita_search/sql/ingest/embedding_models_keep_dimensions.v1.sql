-- embedding_models_keep_dimensions(): trigger function and its trigger.
--
-- Promises   a model's dimension never changes: every vector and the index were
--            checked against it. SE001 for an attempt.
-- Called by  the trigger of the same name, BEFORE UPDATE, per row.

CREATE FUNCTION public.embedding_models_keep_dimensions()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'Model "%" has % dimensions, for good.', OLD.name, OLD.dimensions
        USING ERRCODE = 'SE001',
            HINT = 'Nothing was changed. Register another model, or delete this one if it has no vectors.';
END;
$$;

REVOKE EXECUTE ON FUNCTION public.embedding_models_keep_dimensions FROM PUBLIC;

COMMENT ON FUNCTION public.embedding_models_keep_dimensions IS
    'Refuses to change the dimension of an embedding model.';

CREATE TRIGGER embedding_models_keep_dimensions
    BEFORE UPDATE OF dimensions
    ON public.embedding_models
    FOR EACH ROW
    WHEN (NEW.dimensions <> OLD.dimensions)
    EXECUTE FUNCTION public.embedding_models_keep_dimensions();
