-- similarity_search(query_embedding, match_threshold, match_count,
--                   source_filter, user_id_filter, model_name, metadata_filter,
--                   source_filters, tag_filter, created_after, result_offset)
--
-- Promises   the match_count nearest vectors by cosine after the first
--            result_offset, nearest first, ties by id; similarity is the exact
--            cosine, in [-1, 1]. With filters (see search_filter) still
--            match_count rows, if so many pass. user_id_filter means that
--            person's rows and shared ones; NULL does not restrict.
--            match_threshold drops rows below it.
--            Pages fit together, however long each is: no row twice, none missing.
-- Raises     SE001 dimension, SE002 no direction, SE003 model, SE005
--            match_count or result_offset, SE006 no vector, SE007 threshold,
--            SE008 filter.
-- Called by  applications; the first four parameters stand in v1's order.
-- Locks      those of a SELECT. Volatility STABLE: one snapshot throughout.
--            Not parallel safe: it sets parameters, and puts them back.
--
-- How pages fit together on an approximate index: a wider search may find a row
-- that belongs between two already shown. So the ranking is made of windows of
-- fixed sizes, 10 rows, then up to 40, 160, ...: each is searched at its own
-- width, and ranks only what no window before it holds. The first alone is
-- searched by the usual call; an exact scan needs no second.

CREATE FUNCTION public.similarity_search(
    query_embedding vector,
    match_threshold double precision DEFAULT -1,
    match_count integer DEFAULT 10,
    source_filter text DEFAULT NULL,
    user_id_filter bigint DEFAULT NULL,
    model_name text DEFAULT NULL,
    metadata_filter jsonb DEFAULT NULL,
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
    similarity double precision,
    metadata jsonb,
    document_id uuid,
    title text,
    content text
)
LANGUAGE plpgsql
STABLE
PARALLEL UNSAFE
ROWS 10
SET search_path = public, pg_temp
AS $$
DECLARE
    _model embedding_models;
    _filter search_filter;
    _before text [];
    _depth CONSTANT bigint := result_offset::bigint + match_count;
    _window integer := 10;
    -- The ranking so far, and what a window adds to it.
    _ids uuid [] := '{}';
    _documents uuid [] := '{}';
    _similarities double precision [] := '{}';
    _found record;
    _more record;
BEGIN
    IF query_embedding IS NULL THEN
        RAISE EXCEPTION 'similarity_search() needs a query vector.'
            USING ERRCODE = 'SE006', HINT = 'hybrid_search() also searches by text alone.';
    END IF;
    PERFORM check_search_arguments(match_count, match_threshold, metadata_filter);
    PERFORM check_search_page(match_count, result_offset);
    _model := search_model(model_name, query_embedding);
    _filter := make_search_filter(
        user_id_filter, source_filter, source_filters, metadata_filter, tag_filter, created_after);
    IF _model.index_method = 'exact' THEN
        _window := _depth;
    END IF;

    LOOP
        _before := begin_vector_scan(_model, vector_candidate_count(_model, _window));
        -- No more than this in one statement, because it is planned each time, which is
        -- a tenth of the search. What follows is planned once a session.
        EXECUTE format(
            'SELECT array_agg(v.id) AS ids, array_agg(v.document_id) AS documents, array_agg(v.similarity) AS similarities FROM (%s) AS v',
            vector_candidates_sql(_model, _filter, vector_candidate_count(_model, _window)))
        INTO _found
        USING query_embedding, vector_candidate_count(_model, _window), _filter;
        PERFORM end_vector_scan(_model, _before);

        SELECT array_agg(n.id) AS ids, array_agg(n.document_id) AS documents,
            array_agg(n.similarity) AS similarities
        INTO _more
        FROM (
            SELECT *
            FROM unnest(_found.ids, _found.documents, _found.similarities)
                AS v (id, document_id, similarity)
            WHERE v.similarity >= coalesce(match_threshold, -1) AND v.id <> ALL (_ids)
            ORDER BY v.similarity DESC, v.id
            LIMIT least(_window, _depth) - cardinality(_ids)
        ) AS n;
        EXIT WHEN _more.ids IS NULL;
        _ids := _ids || _more.ids;
        _documents := _documents || _more.documents;
        _similarities := _similarities || _more.similarities;
        EXIT WHEN _window >= _depth OR cardinality(_ids) < _window;
        _window := least(4 * _window, 10000);
    END LOOP;

    RETURN QUERY
    SELECT r.id, d.source_table, d.source_id, d.chunk_index, r.similarity, d.metadata,
        d.id, d.title, d.content
    FROM unnest(
        _ids[result_offset + 1:], _documents[result_offset + 1:], _similarities[result_offset + 1:]
    ) WITH ORDINALITY AS r (id, document_id, similarity, rank)
    INNER JOIN search_documents AS d ON d.id = r.document_id
    ORDER BY r.rank;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.similarity_search FROM PUBLIC;

COMMENT ON FUNCTION public.similarity_search IS
    'The nearest vectors by cosine similarity, answered from the model''s index where it has one.';
