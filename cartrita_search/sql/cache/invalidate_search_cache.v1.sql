-- invalidate_search_cache(namespace, reason, invalidated_by, metadata) -> bigint
--
-- Promises   advance_generation(namespace), and a row in cache_invalidation_log that says
--            why, by whom (default the role) and when. Both come with the commit.
--            Returns the row's id.
--            The namespaces are those that searches look at: 'identity' (all of them),
--            'documents', 'models', 'configs' (searches for a person), 'user:<id>',
--            'sources' (searches that are not restricted to sources), 'source:<name>'
--            (searches restricted to that source, and those of 'sources'). SE008 for others.
-- Called by  cache.py; operators in psql.
-- Locks      see advance_generation(): none that anybody waits for.
-- Volatility VOLATILE.

CREATE FUNCTION public.invalidate_search_cache(
    p_namespace text,
    p_reason text,
    p_invalidated_by text DEFAULT NULL,
    p_metadata jsonb DEFAULT '{}'
)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
DECLARE
    _id bigint;
BEGIN
    IF p_namespace !~ '^(identity|documents|models|configs|sources|user:-?[0-9]+|source:.+)$' THEN
        RAISE EXCEPTION 'There is no namespace "%".', left(p_namespace, 200)
            USING ERRCODE = 'SE008',
            HINT = 'Nothing was changed. There are identity, documents, models, configs, sources, user:<id>, source:<name>.';
    END IF;
    PERFORM advance_generation(p_namespace);
    IF starts_with(p_namespace, 'source:') THEN
        PERFORM advance_generation('sources');
    END IF;
    INSERT INTO cache_invalidation_log (cache_namespace, invalidation_reason, invalidated_by, metadata)
    VALUES (p_namespace, p_reason, coalesce(p_invalidated_by, current_user), p_metadata)
    RETURNING id INTO _id;
    RETURN _id;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.invalidate_search_cache FROM PUBLIC;

COMMENT ON FUNCTION public.invalidate_search_cache IS
    'Makes all results cached under a namespace so far unfindable, and logs why.';
