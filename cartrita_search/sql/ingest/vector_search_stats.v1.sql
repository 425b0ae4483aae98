-- vector_search_stats: how complete and how fresh the vectors are.
--
-- Promises   a row for every source and model: documents, embeddings, missing
--            (no vector yet), stale (the vector is of an older text), dimensions,
--            oldest and newest vector. A source without any model shows NULL.
-- Called by  operators, the admin, the doctor.
-- Cost       reads both tables; for dashboards, not for a request.

CREATE VIEW public.vector_search_stats AS
SELECT
    d.source_table || ' / ' || coalesce(m.name, '') AS id,
    d.source_table,
    m.name AS embedding_model,
    m.dimensions,
    count(*) AS documents,
    count(e.id) AS embeddings,
    count(*) FILTER (WHERE m.name IS NOT NULL AND e.id IS NULL) AS missing,
    count(*) FILTER (WHERE e.content_hash <> d.content_hash) AS stale,
    min(e.updated_at) AS oldest,
    max(e.updated_at) AS newest
FROM public.search_documents AS d
LEFT JOIN public.embedding_models AS m ON true
LEFT JOIN public.embeddings AS e ON e.document_id = d.id AND e.embedding_model = m.name
GROUP BY d.source_table, m.name, m.dimensions;

COMMENT ON VIEW public.vector_search_stats IS
    'Per source and embedding model: documents, embeddings, missing and stale ones, dimension, oldest and newest.';
