-- keyword_vector(search vector, average length) -> sparsevec(268435456)
--
-- Promises   the BM25 weights of a document as keyword_weights() has them: its
--            inner product with keyword_query().terms is the BM25 score.
-- Called by  the trigger on search_documents, refresh_keyword_statistics.
-- Volatility IMMUTABLE.

CREATE FUNCTION public.keyword_vector(p_search_vector tsvector, p_average_length double precision)
RETURNS sparsevec
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = public, pg_temp
AS $$
BEGIN
    RETURN (SELECT k.weights FROM keyword_weights(p_search_vector, p_average_length) AS k);
END;
$$;

REVOKE EXECUTE ON FUNCTION public.keyword_vector FROM PUBLIC;

COMMENT ON FUNCTION public.keyword_vector IS
    'BM25 term weights of a document as a sparse vector; its inner product with keyword_query().terms is the BM25 score.';
