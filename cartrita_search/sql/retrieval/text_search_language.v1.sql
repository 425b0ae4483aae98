-- text_search_language(name) -> regconfig
--
-- Promises   the text search configuration of that name; SE008 if there is none.
-- Called by  upsert_embedding and keyword_query.
-- Volatility STABLE. Not parallel safe: before PostgreSQL 17 a parallel worker
--            cannot catch an exception.

CREATE FUNCTION public.text_search_language(p_name text)
RETURNS regconfig
LANGUAGE plpgsql
STABLE
SET search_path = public, pg_temp
AS $$
BEGIN
    -- The cast takes these for an object id, and looks for none.
    IF p_name ~ '^(-|[0-9]+)$' THEN
        RAISE undefined_object;
    END IF;
    RETURN p_name::regconfig;
EXCEPTION
    WHEN undefined_object OR invalid_name OR syntax_error OR invalid_schema_name
        OR invalid_text_representation OR feature_not_supported THEN
        RAISE EXCEPTION 'There is no text search configuration "%".', left(p_name, 100)
            USING ERRCODE = 'SE008',
                HINT = 'Nothing was changed. psql''s \dF lists them; "simple" fits any language.';
END;
$$;

REVOKE EXECUTE ON FUNCTION public.text_search_language FROM PUBLIC;

COMMENT ON FUNCTION public.text_search_language IS
    'The named text search configuration; raises SE008 where there is none.';
