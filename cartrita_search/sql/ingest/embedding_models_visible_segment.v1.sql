-- embedding_models.visible_segment: up to which segment vectors are found.
--
-- Promises   vector searches find a model's embeddings whose segment is not above
--            it. It grows by one with every rebuild_vector_indexes(), which so makes
--            a whole load visible at once, and never shrinks.
-- Called by  vector_candidates_sql and vector_index_sql write it as a literal;
--            rebuild_vector_indexes sets it; merge_ingest_batch looks it up.
-- Locks      ACCESS EXCLUSIVE on embedding_models for an instant.

ALTER TABLE public.embedding_models
ADD COLUMN visible_segment integer NOT NULL DEFAULT 0;

COMMENT ON COLUMN public.embedding_models.visible_segment IS
    'Vector searches find this model''s embeddings up to this segment.';
