-- embeddings_follow_document_update: trigger.
--
-- Promises   the rule of embeddings_follow_document() for updates, whatever they set.
-- Called by  BEFORE UPDATE, per row. An insert has its own trigger, with a condition
--            that an update must not have.

CREATE TRIGGER embeddings_follow_document_update
    BEFORE UPDATE
    ON public.embeddings
    FOR EACH ROW EXECUTE FUNCTION public.embeddings_follow_document();

COMMENT ON TRIGGER embeddings_follow_document_update ON public.embeddings IS
    'Keeps an updated vector in step with its model and its document.';
