-- search_documents_lead_embeddings(): trigger function and its trigger.
--
-- Promises   a document's new owner, metadata or key reaches its vectors in the
--            same transaction.
-- Called by  the trigger of the same name, AFTER UPDATE, only for rows where
--            one of these columns really changed.
-- Locks      the document's rows in embeddings, for update.
--
-- The text is in the column list because search_documents_keywords() notes an
-- overlong one in the metadata, and only what an UPDATE names fires a trigger.

CREATE FUNCTION public.search_documents_lead_embeddings()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
BEGIN
    UPDATE embeddings AS e
    SET source_table = NEW.source_table,
        source_id = NEW.source_id,
        chunk_index = NEW.chunk_index,
        user_id = NEW.user_id,
        metadata = NEW.metadata
    WHERE e.document_id = NEW.id;
    RETURN NULL;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.search_documents_lead_embeddings FROM PUBLIC;

COMMENT ON FUNCTION public.search_documents_lead_embeddings IS
    'Carries a document''s change of owner, metadata or key over to its vectors.';

CREATE TRIGGER search_documents_lead_embeddings
    AFTER UPDATE OF
        source_table, source_id, chunk_index, user_id, metadata, title, content, language
    ON public.search_documents
    FOR EACH ROW
    WHEN (
        (OLD.source_table, OLD.source_id, OLD.chunk_index, OLD.user_id, OLD.metadata)
        IS DISTINCT FROM
        (NEW.source_table, NEW.source_id, NEW.chunk_index, NEW.user_id, NEW.metadata)
    )
    EXECUTE FUNCTION public.search_documents_lead_embeddings();
