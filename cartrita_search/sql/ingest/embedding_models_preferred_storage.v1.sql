-- embedding_models.preferred_storage: what the next index of the model stores.
--
-- Promises   'auto' leaves it to vector_index_plan; otherwise one that can index the
--            model's dimension: vector up to 2,000, halfvec up to 4,000, bit any.
-- Called by  vector_index_plan reads it; staff and manage.py embedding_models set it.
-- Locks      ACCESS EXCLUSIVE on embedding_models for an instant: it has a few rows.

ALTER TABLE public.embedding_models
ADD COLUMN preferred_storage text NOT NULL DEFAULT 'auto',
ADD CONSTRAINT embedding_models_preferred_storage CHECK (
    preferred_storage IN ('auto', 'bit')
    OR preferred_storage = 'vector' AND dimensions <= 2000
    OR preferred_storage = 'halfvec' AND dimensions <= 4000
);

COMMENT ON COLUMN public.embedding_models.preferred_storage IS
    'What the next index of the model stores: auto, vector, halfvec or bit.';
