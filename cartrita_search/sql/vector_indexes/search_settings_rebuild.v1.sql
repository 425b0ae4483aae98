-- search_settings.rebuild_growth, rebuild_dead_share: when an index is due.
--
-- Promises   both above 0; dead_share is at most 1.
-- Called by  vector_index_needs.
-- Locks      ACCESS EXCLUSIVE on search_settings for an instant: it has one row.

ALTER TABLE public.search_settings
ADD COLUMN rebuild_growth double precision NOT NULL DEFAULT 0.3,
ADD COLUMN rebuild_dead_share double precision NOT NULL DEFAULT 0.2,
ADD CONSTRAINT search_settings_rebuild_growth CHECK (rebuild_growth > 0),
ADD CONSTRAINT search_settings_rebuild_dead_share CHECK (rebuild_dead_share > 0 AND rebuild_dead_share <= 1);

COMMENT ON COLUMN public.search_settings.rebuild_growth IS
    'An index is due when a model has this share of vectors more, or fewer, than it was built on.';
COMMENT ON COLUMN public.search_settings.rebuild_dead_share IS
    'An index is due when this share of the rows of embeddings is dead.';
