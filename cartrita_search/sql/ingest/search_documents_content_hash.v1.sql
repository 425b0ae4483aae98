-- search_documents_content_hash(): trigger function and its trigger.
--
-- Promises   content_hash follows the text: a new row without one gets it
--            computed; a change of title or content recomputes it unless the
--            same statement sets another hash. updated_at moves with any
--            update.
-- Called by  the trigger of the same name, BEFORE INSERT OR UPDATE, per row.
-- Volatility a trigger; reads no table.

CREATE FUNCTION public.search_documents_content_hash()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
BEGIN
    IF tg_op = 'INSERT' THEN
        IF NEW.content_hash IS NULL THEN
            NEW.content_hash := document_content_hash(NEW.title, NEW.content);
        END IF;
    ELSE
        NEW.updated_at := clock_timestamp();
        IF NEW.content_hash IS NOT DISTINCT FROM OLD.content_hash
            AND (NEW.title <> OLD.title OR NEW.content <> OLD.content)
        THEN
            NEW.content_hash := document_content_hash(NEW.title, NEW.content);
        END IF;
    END IF;
    RETURN NEW;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.search_documents_content_hash FROM PUBLIC;

COMMENT ON FUNCTION public.search_documents_content_hash IS
    'Keeps content_hash and updated_at of search_documents in step with the text.';

CREATE TRIGGER search_documents_content_hash
    BEFORE INSERT OR UPDATE OF title, content, content_hash, tags, user_id, metadata, language
    ON public.search_documents
    FOR EACH ROW EXECUTE FUNCTION public.search_documents_content_hash();
