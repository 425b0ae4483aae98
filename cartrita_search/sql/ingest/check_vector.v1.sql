-- check_vector(value, dimensions, model name) -> void
--
-- Promises   returns quietly when the value can be stored, indexed and compared
--            under the model; otherwise raises
--              SE001  another dimension than the model's
--              SE002  no usable direction: all zero, or so short or long that
--                     halfvec or the cosine would lose it.
-- Called by  the trigger on embeddings and every search with a vector.
-- Volatility IMMUTABLE but for the error.
--
-- The bounds of the length: halfvec holds magnitudes from 6e-8 to 65504, and
-- the squares that a cosine sums are single precision. Cosine does not depend
-- on the length, so a refused vector is cured by normalising it.

CREATE FUNCTION public.check_vector(p_value vector, p_dimensions integer, p_model text)
RETURNS void
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = public, pg_temp
AS $$
BEGIN
    IF vector_dims(p_value) <> p_dimensions THEN
        RAISE EXCEPTION 'The vector has % dimensions, but model "%" has %.',
            vector_dims(p_value), p_model, p_dimensions
            USING ERRCODE = 'SE001',
                HINT = 'Nothing was changed. Embed the text with that model, or name the model of this vector.';
    END IF;
    IF vector_norm(p_value) = 0 THEN
        RAISE EXCEPTION 'The vector is zero: it has no direction, so no cosine similarity.'
            USING ERRCODE = 'SE002',
                HINT = 'Nothing was changed. Check the embedder: an empty text or a failed call often gives a zero vector.';
    END IF;
    IF vector_norm(p_value) NOT BETWEEN 1e-3 AND 6e4 THEN
        RAISE EXCEPTION 'The vector has length %, outside 0.001 to 60000: half precision would lose its direction.',
            vector_norm(p_value)
            USING ERRCODE = 'SE002',
                HINT = 'Nothing was changed. Normalise the vector to length 1: cosine similarity does not depend on length.';
    END IF;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.check_vector FROM PUBLIC;

COMMENT ON FUNCTION public.check_vector IS
    'Raises SE001 for a dimension other than the model''s, SE002 for a vector without usable direction.';
