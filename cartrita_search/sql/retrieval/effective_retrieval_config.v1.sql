-- effective_retrieval_config(user id) -> retrieval_configs
--
-- Promises   the active configuration that counts for that person: their own, else
--            the site's, else a row of NULLs.
-- Called by  hybrid_search_for_user; applications, for what Python decides.
-- Volatility STABLE; the body is bound at creation.

CREATE FUNCTION public.effective_retrieval_config(p_user_id bigint)
RETURNS retrieval_configs
LANGUAGE sql
STABLE
PARALLEL SAFE
RETURN (
    SELECT c
    FROM public.retrieval_configs AS c
    WHERE c.is_active AND (c.user_id = p_user_id OR c.user_id IS NULL)
    -- NULLS LAST puts the person's own row before the site's.
    ORDER BY c.user_id NULLS LAST
    LIMIT 1
);

REVOKE EXECUTE ON FUNCTION public.effective_retrieval_config FROM PUBLIC;

COMMENT ON FUNCTION public.effective_retrieval_config IS
    'The active retrieval_configs row that counts for a person: their own, or the site''s.';
