-- embeddings.segment: which load a vector came with, as far as searches care.
--
-- Promises   0 for every vector but those of a large load, whose new vectors have a
--            segment beyond their model's visible_segment: in no index, so stored at
--            full speed, and not found by vector searches, until
--            rebuild_vector_indexes() takes them in.
-- Called by  merge_ingest_batch sets it; the model's index and vector_candidates_sql
--            are partial by it.
-- Locks      ACCESS EXCLUSIVE on embeddings for an instant: a constant default
--            rewrites no row.

ALTER TABLE public.embeddings
ADD COLUMN segment integer NOT NULL DEFAULT 0;

COMMENT ON COLUMN public.embeddings.segment IS
    'Vector searches find the rows up to embedding_models.visible_segment.';
