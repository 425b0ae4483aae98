-- hybrid_search(query_text, query_embedding, vector_weight, keyword_weight,
--               similarity_threshold, match_count, user_id_filter,
--               source_filter, model_name, metadata_filter, fusion,
--               query_language)
--
-- Promises   the match_count best documents by meaning and by words:
--
--              hybrid_score = vector_weight * cosine
--                           + keyword_weight * bm25 / max(bm25 over the union)
--
--            over the union of both legs' candidates, every candidate with both
--            its exact scores: a document that one leg found gets its true
--            score on the other. Best first, ties by id.
--            fusion 'rrf': vector_weight / (k + vector rank) + keyword_weight /
--            (k + keyword rank), ranks within each leg, k of search_settings
--            (Cormack, Clarke and Buettcher 2009).
--            A leg without input (query_embedding NULL, text NULL or without any
--            lexeme) or with weight 0 stands aside, and the other counts in full.
--            similarity_threshold: a document below it is not proposed by the
--            vector leg; its words may still propose it.
--            Quoted phrases and -negations in the text restrict both legs, the
--            vector leg among its candidates: fewer than match_count may remain.
--            matched_by names the leg that proposed it: 'vector', 'keyword' or,
--            when both did, 'hybrid'. vector_similarity is NULL for a document
--            without a vector under the model, or with no query vector.
-- Raises     SE001 to SE008, see errors.py. Nothing is changed.
-- Called by  applications; the first seven parameters stand in v1's order.
-- Locks      those of a SELECT. Volatility STABLE: one snapshot throughout.
--            Not parallel safe: it sets parameters, and puts them back.

CREATE FUNCTION public.hybrid_search(
    query_text text,
    query_embedding vector,
    vector_weight double precision DEFAULT 0.7,
    keyword_weight double precision DEFAULT 0.3,
    similarity_threshold double precision DEFAULT -1,
    match_count integer DEFAULT 10,
    user_id_filter bigint DEFAULT NULL,
    source_filter text DEFAULT NULL,
    model_name text DEFAULT NULL,
    metadata_filter jsonb DEFAULT NULL,
    fusion text DEFAULT 'weighted',
    query_language text DEFAULT NULL
)
RETURNS TABLE (
    id uuid,
    source_table text,
    source_id text,
    chunk_index integer,
    title text,
    content text,
    metadata jsonb,
    hybrid_score double precision,
    vector_similarity double precision,
    keyword_score double precision,
    matched_by text
)
LANGUAGE plpgsql
STABLE
PARALLEL UNSAFE
ROWS 10
SET search_path = public, pg_temp
-- Compiling takes longer than any of these searches.
SET jit = off
-- The planner takes search_vector @@ query for cheap, but the value lies outside
-- the row: on 5,000 abstracts a sequential scan took 19 ms, the bitmap scan that
-- needs no such value 4 ms, even where it fetched half of the table.
SET enable_seqscan = off
AS $$
DECLARE
    _settings search_settings;
    _model embedding_models;
    _query record;
    _has_vector CONSTANT boolean := query_embedding IS NOT NULL;
    _has_terms boolean;
    _by_vector boolean;
    _by_keyword boolean;
    _pool integer;
    _before text [];
BEGIN
    PERFORM check_search_arguments(match_count, similarity_threshold, metadata_filter);
    IF vector_weight IS NULL OR keyword_weight IS NULL
        OR vector_weight NOT BETWEEN 0 AND 1 OR keyword_weight NOT BETWEEN 0 AND 1
        OR abs(vector_weight + keyword_weight - 1) > 1e-6
    THEN
        RAISE EXCEPTION 'vector_weight and keyword_weight must each be in [0, 1] and sum to 1; they are % and %.',
            coalesce(vector_weight::text, 'NULL'), coalesce(keyword_weight::text, 'NULL')
            USING ERRCODE = 'SE004', HINT = 'The default is 0.7 and 0.3.';
    END IF;
    IF fusion IS NULL OR fusion NOT IN ('weighted', 'rrf') THEN
        RAISE EXCEPTION 'There is no fusion "%".', coalesce(left(fusion, 100), 'NULL')
            USING ERRCODE = 'SE008', HINT = 'Use ''weighted'' (the default) or ''rrf''.';
    END IF;
    IF query_text IS NULL AND query_embedding IS NULL THEN
        RAISE EXCEPTION 'There is nothing to search for: query_text and query_embedding are both NULL.'
            USING ERRCODE = 'SE006', HINT = 'Give either; give both for a hybrid search.';
    END IF;

    SELECT s.* INTO _settings FROM search_settings AS s;
    _pool := greatest(_settings.candidate_pool, 4 * match_count);

    SELECT k.* INTO _query FROM keyword_query(coalesce(query_text, ''), query_language) AS k;
    _has_terms := _query.candidates IS NOT NULL;
    _by_vector := _has_vector AND (vector_weight > 0 OR NOT _has_terms);
    _by_keyword := _has_terms AND (keyword_weight > 0 OR NOT _has_vector);
    IF NOT _by_vector THEN
        vector_weight := 0;
        keyword_weight := 1;
    ELSIF NOT _by_keyword THEN
        vector_weight := 1;
        keyword_weight := 0;
    END IF;

    IF _has_vector OR model_name IS NOT NULL THEN
        _model := search_model(model_name, query_embedding);
    END IF;
    IF _has_vector THEN
        _pool := greatest(_pool, vector_candidate_count(_model, match_count));
        _before := begin_vector_scan(_model, _pool);
    END IF;

    RETURN QUERY EXECUTE format(
        $statement$
WITH vector_leg AS MATERIALIZED (
    SELECT v.document_id AS id, v.similarity,
        row_number() OVER (ORDER BY v.similarity DESC, v.document_id) AS rank
    FROM (%1$s) AS v
    WHERE v.similarity >= $6
),
keyword_leg AS MATERIALIZED (
    SELECT k.id, k.bm25, row_number() OVER (ORDER BY k.bm25 DESC, k.id) AS rank
    FROM (%2$s) AS k
),
-- Scalar subqueries, evaluated only where a leg left a gap: a lookup by key each.
-- As joins the planner, which does not know how few the candidates are, may
-- prefer to hash the whole table.
completed AS MATERIALIZED (
    SELECT coalesce(v.id, k.id) AS id,
        v.rank AS vector_rank,
        k.rank AS keyword_rank,
        coalesce(v.similarity, %3$s) AS similarity,
        coalesce(k.bm25, %4$s) AS bm25
    FROM vector_leg AS v
    FULL JOIN keyword_leg AS k ON k.id = v.id
),
scored AS MATERIALIZED (
    SELECT c.*, %5$s AS score
    FROM completed AS c
    %6$s
    ORDER BY score DESC, c.id
    LIMIT $11
)
SELECT d.id, d.source_table, d.source_id, d.chunk_index, d.title, d.content, d.metadata,
    s.score, s.similarity, s.bm25,
    CASE
        WHEN s.keyword_rank IS NULL THEN 'vector'
        WHEN s.vector_rank IS NULL THEN 'keyword'
        ELSE 'hybrid'
    END
FROM scored AS s
INNER JOIN search_documents AS d ON d.id = s.id
ORDER BY s.score DESC, s.id$statement$,
        CASE
            WHEN _by_vector THEN vector_candidates_sql(
                _model, user_id_filter IS NOT NULL, source_filter IS NOT NULL, metadata_filter IS NOT NULL)
            ELSE 'SELECT NULL::uuid AS document_id, NULL::double precision AS similarity WHERE false'
        END,
        CASE
            WHEN _by_keyword THEN concat(
                'SELECT d.id, 0 - (d.keyword_vector <#> $7) AS bm25 FROM search_documents AS d WHERE d.search_vector @@ $8',
                CASE WHEN user_id_filter IS NOT NULL THEN ' AND (d.user_id = $3 OR d.user_id IS NULL)' END,
                CASE WHEN source_filter IS NOT NULL THEN ' AND d.source_table = $4' END,
                CASE WHEN metadata_filter IS NOT NULL THEN ' AND d.metadata @> $5' END,
                ' ORDER BY d.keyword_vector <#> $7, d.id LIMIT $2')
            ELSE 'SELECT NULL::uuid AS id, NULL::double precision AS bm25 WHERE false'
        END,
        CASE
            WHEN _has_vector THEN format(
                '(SELECT 1 - (e.embedding <=> $1) FROM embeddings AS e WHERE e.document_id = k.id AND e.embedding_model = %L)',
                _model.name)
            ELSE 'NULL'
        END,
        CASE
            WHEN _has_terms
                THEN '(SELECT 0 - (d.keyword_vector <#> $7) FROM search_documents AS d WHERE d.id = v.id)'
            ELSE 'NULL'
        END,
        CASE fusion
            WHEN 'rrf' THEN format(
                'coalesce($9 / (%1$s + c.vector_rank), 0) + coalesce($10 / (%1$s + c.keyword_rank), 0)',
                _settings.rrf_k)
            ELSE '$9 * coalesce(c.similarity, 0) + $10 * coalesce(c.bm25 / nullif(max(c.bm25) OVER (), 0), 0)'
        END,
        CASE
            WHEN _query.restriction IS NOT NULL
                THEN 'WHERE EXISTS (SELECT FROM search_documents AS d WHERE d.id = c.id AND d.search_vector @@ $12)'
        END
    )
    USING query_embedding, _pool, user_id_filter, source_filter, metadata_filter,
        coalesce(similarity_threshold, -1), _query.terms,
        coalesce(_query.candidates && _query.restriction, _query.candidates),
        vector_weight, keyword_weight, match_count, _query.restriction;

    IF _has_vector THEN
        PERFORM end_vector_scan(_model, _before);
    END IF;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.hybrid_search FROM PUBLIC;

COMMENT ON FUNCTION public.hybrid_search IS
    'Documents by meaning and by words: weighted cosine plus normalised BM25, both exact for every candidate.';
