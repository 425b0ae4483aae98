-- embedding_models.indexed_by: who built the index in place.
--
-- Promises   the operating system's user at which host, for an index that the command
--            built, or the database's role, for one that the SQL function built; NULL
--            where neither has.
-- Called by  swap_vector_index sets it.
-- Locks      ACCESS EXCLUSIVE on embedding_models for an instant.

ALTER TABLE public.embedding_models
ADD COLUMN indexed_by text;

COMMENT ON COLUMN public.embedding_models.indexed_by IS
    'Who built the index in place: user@host by the command, a role by the SQL function.';
