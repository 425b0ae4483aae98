-- vector_recall(model row, sample, k) -> double precision
--
-- Promises   recall@k of the model's index over a vector_recall_sample of the
--            same k, in [0, 1]: the share of the k nearest found that are at
--            least as near as the true k-th. NULL for an empty sample. The model
--            row need not be as stored: its ef_search or probes is what is tried.
-- Called by  rebuild_vector_indexes.
-- Not parallel safe: it sets parameters, and puts them back.

CREATE FUNCTION public.vector_recall(
    p_model embedding_models,
    p_sample jsonb,
    p_k integer DEFAULT 10
)
RETURNS double precision
LANGUAGE plpgsql
STABLE
PARALLEL UNSAFE
SET search_path = public, pg_temp
AS $$
DECLARE
    -- One more than k, because the sampled vector finds itself.
    _candidates CONSTANT integer := vector_candidate_count(p_model, p_k + 1);
    _statement CONSTANT text := format(
        'SELECT count(*) FILTER (WHERE n.similarity >= $4) '
        'FROM (SELECT * FROM (%s) AS v WHERE v.id <> $5 ORDER BY v.similarity DESC LIMIT $6) AS n',
        vector_candidates_sql(p_model, NULL, _candidates));
    _before text [];
    _sampled record;
    _hits bigint;
    _found bigint := 0;
BEGIN
    _before := begin_vector_scan(p_model, _candidates);
    FOR _sampled IN
        SELECT e.id, e.embedding, (s.value ->> 'similarity')::double precision AS similarity
        FROM jsonb_array_elements(p_sample) AS s
        INNER JOIN embeddings AS e ON e.id = (s.value ->> 'id')::uuid
    LOOP
        -- Both sides are the same arithmetic on the same values; the margin is
        -- for the text form in which the sample carries its figure.
        EXECUTE _statement INTO _hits
        USING _sampled.embedding, _candidates, NULL::search_filter, _sampled.similarity - 1e-9,
            _sampled.id, p_k;
        _found := _found + _hits;
    END LOOP;
    PERFORM end_vector_scan(p_model, _before);
    RETURN _found::double precision / nullif(jsonb_array_length(p_sample) * p_k, 0);
END;
$$;

REVOKE EXECUTE ON FUNCTION public.vector_recall FROM PUBLIC;

COMMENT ON FUNCTION public.vector_recall IS
    'recall@k of a model''s vector index against the exact scan, over a sample.';
