-- hybrid_search(query_text, query_embedding, vector_weight, keyword_weight,
--               similarity_threshold, match_count, user_id_filter,
--               source_filter, model_name, metadata_filter, fusion,
--               query_language, source_filters, tag_filter, created_after,
--               result_offset)
--
-- Promises   the match_count best documents by meaning and by words, after the
--            first result_offset:
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
--            Filters (see search_filter) apply inside both legs.
--            Quoted phrases and -negations in the text restrict both legs, the
--            vector leg among its candidates: fewer than match_count may remain.
--            matched_by names the leg that proposed it: 'vector', 'keyword' or,
--            when both did, 'hybrid'. vector_similarity is NULL for a document
--            without a vector under the model, or with no query vector.
--            The rest explains the score: the rank within each leg (NULL where
--            that leg did not propose it), bm25 / max(bm25), and the weights that
--            counted.
--            Until the transaction ends current_setting('cartrita_search.leg_ms') tells
--            the milliseconds of this search's vector leg and keyword leg, like 2.1,0.6:
--            empty where a leg stood aside or proposed nothing. The planning of both
--            counts to the one that runs first. Not among the columns, so that the same
--            search gives the same rows.
--            Pages fit together, however long each is: no row twice, none missing.
-- Raises     SE001 to SE008, see errors.py. Nothing is changed.
-- Called by  applications; the first seven parameters stand in v1's order.
-- Locks      those of a SELECT. Volatility STABLE: one snapshot throughout.
--            Not parallel safe: it sets parameters, and puts them back.
--
-- How pages fit together although each leg proposes a limited number: see
-- similarity_search. The first window here are the results up to a quarter of
-- candidate_pool (ten at least: the usual search is one window); each further one
-- reaches four times as far. Each leg proposes four candidates for each result.

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
    query_language text DEFAULT NULL,
    source_filters text [] DEFAULT NULL,
    tag_filter text [] DEFAULT NULL,
    created_after timestamptz DEFAULT NULL,
    result_offset integer DEFAULT 0
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
    matched_by text,
    vector_rank integer,
    keyword_rank integer,
    keyword_share double precision,
    effective_vector_weight double precision,
    effective_keyword_weight double precision
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
    _filter search_filter;
    _has_vector CONSTANT boolean := query_embedding IS NOT NULL;
    _has_terms boolean;
    _by_vector boolean;
    _by_keyword boolean;
    _before text [];
    _depth CONSTANT bigint := result_offset::bigint + match_count;
    _window integer;
    _pool integer;
    -- The ranking so far, and what a window adds to it.
    _ranking hybrid_candidate [] := '{}';
    _more hybrid_candidate [];
    -- When the statement began, and when each leg had its candidates.
    _begun timestamptz;
    _vector_done timestamptz;
    _keyword_done timestamptz;
    _vector_ms double precision;
    _keyword_ms double precision;
BEGIN
    PERFORM check_search_arguments(match_count, similarity_threshold, metadata_filter);
    PERFORM check_search_page(match_count, result_offset);
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
    _filter := make_search_filter(
        user_id_filter, source_filter, source_filters, metadata_filter, tag_filter, created_after);

    _window := greatest(10, _settings.candidate_pool / 4);
    LOOP
        _pool := greatest(_settings.candidate_pool, 4 * _window);
        IF _has_vector THEN
            _pool := greatest(_pool, vector_candidate_count(_model, _window));
            _before := begin_vector_scan(_model, _pool);
        END IF;
        _begun := clock_timestamp();
        -- The documents by a statement of its own: that one is planned once a
        -- session, while this one is planned each time.
        EXECUTE format(
            $statement$
WITH vector_leg AS MATERIALIZED (
    SELECT v.document_id AS id, v.similarity,
        row_number() OVER (ORDER BY v.similarity DESC, v.document_id) AS rank,
        clock_timestamp() AS at
    FROM (%1$s) AS v
    WHERE v.similarity >= $4
),
keyword_leg AS MATERIALIZED (
    SELECT k.id, k.bm25, row_number() OVER (ORDER BY k.bm25 DESC, k.id) AS rank,
        clock_timestamp() AS at
    FROM (%2$s) AS k
),
-- Scalar subqueries, evaluated only where a leg left a gap: a lookup by key each.
-- As joins the planner, which does not know how few the candidates are, may
-- prefer to hash the whole table; and where it takes the model for a rare one
-- (without concat), to read the whole index that begins with the model for each.
completed AS MATERIALIZED (
    SELECT coalesce(v.id, k.id) AS id,
        v.rank AS vector_rank,
        k.rank AS keyword_rank,
        coalesce(v.similarity, %3$s) AS similarity,
        coalesce(k.bm25, %4$s) AS bm25
    FROM vector_leg AS v
    FULL JOIN keyword_leg AS k ON k.id = v.id
),
shared AS (
    SELECT c.*, c.bm25 / nullif(max(c.bm25) OVER (), 0) AS keyword_share
    FROM completed AS c
    %6$s
)
SELECT array_agg(
    ROW(r.id, r.score, r.similarity, r.bm25, r.vector_rank, r.keyword_rank, r.keyword_share)::hybrid_candidate
),
-- The first row of a leg comes when all of its candidates are ranked.
(SELECT min(v.at) FROM vector_leg AS v),
(SELECT min(k.at) FROM keyword_leg AS k)
FROM (
    SELECT s.*, %5$s AS score
    FROM shared AS s
    %7$s
    ORDER BY score DESC, s.id
    LIMIT $9
) AS r$statement$,
            CASE
                WHEN _by_vector THEN vector_candidates_sql(_model, _filter, _pool)
                ELSE 'SELECT NULL::uuid AS document_id, NULL::double precision AS similarity WHERE false'
            END,
            CASE
                WHEN _by_keyword THEN concat(
                    'SELECT d.id, 0 - (d.keyword_vector <#> $5) AS bm25 FROM search_documents AS d WHERE d.search_vector @@ $6',
                    search_filter_sql(_filter, 'd'),
                    ' ORDER BY d.keyword_vector <#> $5, d.id LIMIT $2')
                ELSE 'SELECT NULL::uuid AS id, NULL::double precision AS bm25 WHERE false'
            END,
            CASE
                WHEN _has_vector THEN format(
                    '(SELECT 1 - (e.embedding <=> $1) FROM embeddings AS e WHERE e.document_id = k.id AND concat(e.embedding_model) = %L)',
                    _model.name)
                ELSE 'NULL'
            END,
            CASE
                WHEN _has_terms
                    THEN '(SELECT 0 - (d.keyword_vector <#> $5) FROM search_documents AS d WHERE d.id = v.id)'
                ELSE 'NULL::double precision'
            END,
            CASE fusion
                WHEN 'rrf' THEN format(
                    'coalesce($7 / (%1$s + s.vector_rank), 0) + coalesce($8 / (%1$s + s.keyword_rank), 0)',
                    _settings.rrf_k)
                ELSE '$7 * coalesce(s.similarity, 0) + $8 * coalesce(s.keyword_share, 0)'
            END,
            CASE
                WHEN _query.restriction IS NOT NULL
                    THEN 'WHERE EXISTS (SELECT FROM search_documents AS d WHERE d.id = c.id AND d.search_vector @@ $10)'
            END,
            CASE
                WHEN _ranking <> '{}'
                    THEN 'WHERE s.id <> ALL (ARRAY(SELECT p.id FROM unnest($11) AS p))'
            END)
        INTO _more, _vector_done, _keyword_done
        USING query_embedding, _pool, _filter, coalesce(similarity_threshold, -1), _query.terms,
            coalesce(_query.candidates && _query.restriction, _query.candidates),
            vector_weight, keyword_weight, least(_window, _depth) - cardinality(_ranking),
            _query.restriction, _ranking;
        IF _has_vector THEN
            PERFORM end_vector_scan(_model, _before);
        END IF;
        _ranking := _ranking || _more;
        -- One leg runs after the other.
        _vector_ms := coalesce(_vector_ms, 0) + 1000 * extract(epoch FROM _vector_done
            - CASE WHEN _keyword_done < _vector_done THEN _keyword_done ELSE _begun END);
        _keyword_ms := coalesce(_keyword_ms, 0) + 1000 * extract(epoch FROM _keyword_done
            - CASE WHEN _vector_done < _keyword_done THEN _vector_done ELSE _begun END);
        EXIT WHEN _window >= _depth;
        _window := least(4 * _window, 10000);
    END LOOP;
    PERFORM set_config('cartrita_search.leg_ms', concat(_vector_ms, ',', _keyword_ms), true);

    RETURN QUERY
    SELECT d.id, d.source_table, d.source_id, d.chunk_index, d.title, d.content, d.metadata,
        r.score, r.similarity, r.bm25,
        CASE
            WHEN r.keyword_rank IS NULL THEN 'vector'
            WHEN r.vector_rank IS NULL THEN 'keyword'
            ELSE 'hybrid'
        END,
        r.vector_rank, r.keyword_rank, r.keyword_share, vector_weight, keyword_weight
    FROM unnest(_ranking[result_offset + 1:]) WITH ORDINALITY
        AS r (id, score, similarity, bm25, vector_rank, keyword_rank, keyword_share, rank)
    INNER JOIN search_documents AS d ON d.id = r.id
    ORDER BY r.rank;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.hybrid_search FROM PUBLIC;

COMMENT ON FUNCTION public.hybrid_search IS
    'Documents by meaning and by words: weighted cosine plus normalised BM25, both exact for every candidate.';
