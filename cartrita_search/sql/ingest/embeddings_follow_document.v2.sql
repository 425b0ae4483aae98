-- embeddings_follow_document(): trigger function and its trigger.
--
-- Promises   a new row that leaves the copied columns out gets its document's, and
--            its vector fits its model (check_vector: SE001, SE002; SE003 for an
--            unknown model); the same for every update. A new row that brings the
--            copied columns is embeddings_check_inserted's, once a statement.
-- Called by  the trigger of the same name, BEFORE INSERT, per row, and
--            embeddings_follow_document_update.
-- Locks      FOR SHARE on the document's row. Without it a change of owner
--            committed between our read and our insert would leave the vector
--            with the former owner, who could then find it.

CREATE FUNCTION public.embeddings_follow_document()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
DECLARE
    _dimensions integer;
BEGIN
    SELECT m.dimensions INTO _dimensions
    FROM embedding_models AS m
    WHERE m.name = NEW.embedding_model;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'There is no embedding model "%".', NEW.embedding_model
            USING ERRCODE = 'SE003',
                HINT = 'Nothing was changed. Register it by its first upsert_embedding(), or insert it into embedding_models.';
    END IF;
    PERFORM check_vector(NEW.embedding, _dimensions, NEW.embedding_model);

    SELECT d.source_table, d.source_id, d.chunk_index, d.user_id, d.metadata,
        coalesce(NEW.content_hash, d.content_hash)
    INTO NEW.source_table, NEW.source_id, NEW.chunk_index, NEW.user_id, NEW.metadata,
        NEW.content_hash
    FROM search_documents AS d
    WHERE d.id = NEW.document_id
    FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'There is no search_documents row %.', NEW.document_id
            USING ERRCODE = 'foreign_key_violation',
                HINT = 'Nothing was changed. Store the document before its vector, or use upsert_embedding().';
    END IF;

    IF tg_op = 'UPDATE' THEN
        NEW.updated_at := clock_timestamp();
    END IF;
    RETURN NEW;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.embeddings_follow_document FROM PUBLIC;

COMMENT ON FUNCTION public.embeddings_follow_document IS
    'Checks a vector against its model and copies source, owner and metadata from its document.';

CREATE TRIGGER embeddings_follow_document
    BEFORE INSERT
    ON public.embeddings
    FOR EACH ROW
    WHEN (NEW.source_table IS NULL OR NEW.content_hash IS NULL)
    EXECUTE FUNCTION public.embeddings_follow_document();
