-- register_embedding_model(name, dimensions) -> embedding_models
--
-- Promises   the model's row; a name not seen before is registered with these
--            dimensions, and becomes the default if there is none. NULL means
--            the default model; SE003 if there is none yet.
-- Called by  upsert_embedding; bulk ingest, once a batch.
-- Locks      none where the model is known. Safe under concurrency: of several
--            first registrations one inserts, the others find its row.
-- Volatility VOLATILE.

CREATE FUNCTION public.register_embedding_model(p_name text, p_dimensions integer)
RETURNS embedding_models
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
DECLARE
    _model embedding_models;
BEGIN
    IF p_name IS NULL THEN
        SELECT m.* INTO _model FROM embedding_models AS m WHERE m.is_default;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'No embedding model was named, and there is no default model yet.'
                USING ERRCODE = 'SE003',
                    HINT = 'Nothing was changed. Name the model: the first one registered becomes the default.';
        END IF;
        RETURN _model;
    END IF;

    SELECT m.* INTO _model FROM embedding_models AS m WHERE m.name = p_name;
    IF FOUND THEN
        RETURN _model;
    END IF;
    IF length(p_name) NOT BETWEEN 1 AND 200 THEN
        RAISE EXCEPTION 'An embedding model''s name has 1 to 200 characters; this one has %.', length(p_name)
            USING ERRCODE = 'SE008', HINT = 'Nothing was changed.';
    END IF;

    -- Without a conflict target DO NOTHING also stands back when another
    -- session has just registered its own model as the default.
    INSERT INTO embedding_models (name, dimensions, is_default)
    VALUES (p_name, p_dimensions, NOT EXISTS (SELECT FROM embedding_models WHERE is_default))
    ON CONFLICT DO NOTHING;
    INSERT INTO embedding_models (name, dimensions)
    VALUES (p_name, p_dimensions)
    ON CONFLICT DO NOTHING;

    SELECT m.* INTO STRICT _model FROM embedding_models AS m WHERE m.name = p_name;
    RETURN _model;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.register_embedding_model FROM PUBLIC;

COMMENT ON FUNCTION public.register_embedding_model IS
    'The row of the named (or default) embedding model, registered on first sight.';
