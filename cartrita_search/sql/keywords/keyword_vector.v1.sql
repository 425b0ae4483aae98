-- keyword_vector(search vector, average length) -> sparsevec(268435456)
--
-- Promises   the BM25 weight of each lexeme of a document,
--
--              tf * (k1 + 1) / (tf + k1 * (1 - b + b * length / average_length))
--
--            at the component lexeme_index(lexeme), where tf is the number of
--            its occurrences, those in the title (weight A) counting twice, and
--            length the sum of all tf; k1 = 1.2, b = 0.75. Without an average
--            length the document counts as of average length.
--            Robertson and Zaragoza, "The Probabilistic Relevance Framework:
--            BM25 and Beyond", 2009; the query side is keyword_query.
-- Called by  the trigger on search_documents, refresh_keyword_statistics.
-- Volatility IMMUTABLE.
--
-- A sparsevec holds 16,000 entries: beyond that the heaviest stay.

CREATE FUNCTION public.keyword_vector(p_search_vector tsvector, p_average_length double precision)
RETURNS sparsevec
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = public, pg_temp
AS $$
BEGIN
    RETURN (
        SELECT '{' || coalesce(string_agg(w.component || ':' || w.weight, ','), '') || '}/268435456'
        FROM (
            SELECT
                t.component,
                (t.tf * 2.2 / (
                    t.tf + 1.2 * (
                        0.25 + 0.75 * coalesce(sum(t.tf) OVER () / nullif(p_average_length, 0), 1)
                    )
                ))::real AS weight
            FROM (
                -- Grouped, because two lexemes may share a component.
                SELECT
                    lexeme_index(u.lexeme) AS component,
                    sum(
                        cardinality(u.positions) + cardinality(array_positions(u.weights, 'A'))
                    )::double precision AS tf
                FROM unnest(p_search_vector) AS u
                GROUP BY 1
            ) AS t
            ORDER BY weight DESC
            LIMIT 16000
        ) AS w
    )::sparsevec;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.keyword_vector FROM PUBLIC;

COMMENT ON FUNCTION public.keyword_vector IS
    'BM25 term weights of a document as a sparse vector; its inner product with keyword_query().terms is the BM25 score.';
