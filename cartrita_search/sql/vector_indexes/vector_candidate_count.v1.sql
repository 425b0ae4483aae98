-- vector_candidate_count(model, wanted) -> integer
--
-- Promises   how many candidates the index must give so that, put in order by
--            the exact cosine, the first `wanted` are right.
-- Called by  similarity_search, hybrid_search, vector_recall.
-- Volatility IMMUTABLE; the body is bound at creation.
--
-- halfvec rounds to 11 bits, which swaps neighbours that are nearly tied: half
-- as many again, and ten, put that right. One bit a component keeps only a rough
-- order: see tests/benchmarks/ for recall by factor.

CREATE FUNCTION public.vector_candidate_count(p_model embedding_models, p_wanted integer)
RETURNS integer
LANGUAGE sql
IMMUTABLE
PARALLEL SAFE
RETURN CASE
    WHEN p_model.index_method = 'exact' OR p_model.index_storage = 'vector' THEN p_wanted
    WHEN p_model.index_storage = 'halfvec' THEN p_wanted + p_wanted / 2 + 10
    ELSE greatest(20 * p_wanted, 200)
END;

REVOKE EXECUTE ON FUNCTION public.vector_candidate_count FROM PUBLIC;

COMMENT ON FUNCTION public.vector_candidate_count IS
    'Candidates to take from a model''s index so that re-ranking by the exact cosine gives the right first ones.';
