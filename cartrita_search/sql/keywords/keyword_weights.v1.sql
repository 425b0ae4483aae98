-- keyword_weights(search vector, average length) -> one row (weights)
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
-- Called by  keyword_vector for one document, merge_ingest_batch for many.
-- Volatility IMMUTABLE; the body is bound at creation. It gives a row and not a
--            value because only so the planner inlines it: that takes 10 us a
--            document where a call takes 17.
--
-- A sparsevec holds 16,000 entries: beyond that the heaviest stay.

CREATE FUNCTION public.keyword_weights(p_search_vector tsvector, p_average_length double precision)
RETURNS TABLE (weights sparsevec)
LANGUAGE sql
IMMUTABLE
PARALLEL SAFE
ROWS 1
BEGIN ATOMIC
    SELECT ('{' || coalesce(string_agg(w.component || ':' || w.weight, ','), '') || '}/268435456')::sparsevec
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
                public.lexeme_index(u.lexeme) AS component,
                sum(
                    cardinality(u.positions) + cardinality(array_positions(u.weights, 'A'))
                )::double precision AS tf
            FROM unnest(p_search_vector) AS u
            GROUP BY 1
        ) AS t
        ORDER BY weight DESC
        LIMIT 16000
    ) AS w;
END;

REVOKE EXECUTE ON FUNCTION public.keyword_weights FROM PUBLIC;

COMMENT ON FUNCTION public.keyword_weights IS
    'BM25 term weights of a document as a sparse vector, as a row that the planner can inline.';
