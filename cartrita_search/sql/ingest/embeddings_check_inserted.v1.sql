-- embeddings_check_inserted(): trigger function and its trigger.
--
-- Promises   when an INSERT or COPY has ended, the copied columns of all its rows
--            equal their documents', whatever the writer put there, and every vector
--            fits its model (check_vector: SE001, SE002; SE003 for an unknown model).
-- Called by  the trigger of the same name, AFTER INSERT, once a statement: for
--            thousands of rows a tenth of what a look at each costs.
-- Locks      FOR SHARE on the documents' rows. Without it a change of owner
--            committed between the writer's read and its insert would leave the
--            vector with the former owner, who could then find it.

CREATE FUNCTION public.embeddings_check_inserted()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
DECLARE
    _unfit record;
    _differing uuid [];
BEGIN
    SELECT w.embedding_model, w.embedding, m.dimensions INTO _unfit
    FROM written AS w
    LEFT JOIN embedding_models AS m ON m.name = w.embedding_model
    WHERE m.name IS NULL
        OR vector_dims(w.embedding) <> m.dimensions
        OR vector_norm(w.embedding) NOT BETWEEN 1e-3 AND 6e4
    LIMIT 1;
    IF FOUND AND _unfit.dimensions IS NULL THEN
        RAISE EXCEPTION 'There is no embedding model "%".', _unfit.embedding_model
            USING ERRCODE = 'SE003',
                HINT = 'Nothing was changed. Register it by its first upsert_embedding(), or insert it into embedding_models.';
    ELSIF FOUND THEN
        PERFORM check_vector(_unfit.embedding, _unfit.dimensions, _unfit.embedding_model);
    END IF;

    -- Compared after the lock is had, so with what was committed meanwhile.
    SELECT array_agg(l.id) INTO _differing
    FROM (
        SELECT
            w.id,
            (w.source_table, w.source_id, w.chunk_index, w.user_id, w.metadata)
            IS DISTINCT FROM
            (d.source_table, d.source_id, d.chunk_index, d.user_id, d.metadata) AS differs
        FROM written AS w
        INNER JOIN search_documents AS d ON d.id = w.document_id
        FOR SHARE OF d
    ) AS l
    WHERE l.differs;
    IF _differing IS NOT NULL THEN
        -- embeddings_follow_document() fills in the rest.
        UPDATE embeddings AS e SET source_table = NULL WHERE e.id = ANY (_differing);
    END IF;
    RETURN NULL;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.embeddings_check_inserted FROM PUBLIC;

COMMENT ON FUNCTION public.embeddings_check_inserted IS
    'Checks the vectors of a statement against their models, and their copied columns against their documents.';

CREATE TRIGGER embeddings_check_inserted
    AFTER INSERT
    ON public.embeddings
    REFERENCING NEW TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION public.embeddings_check_inserted();
