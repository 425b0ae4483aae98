-- search_documents_metadata: documents by what their metadata contains.
--
-- Promises   a filter by it that keeps few documents finds them without reading the
--            others.
-- Called by  the planner, for both legs of a search.
-- Locks      SHARE UPDATE EXCLUSIVE on search_documents while it is built: nobody who
--            searches or writes waits.
--
-- The limit of the pending list is that of search_documents_search_vector, for its reason.

CREATE INDEX CONCURRENTLY search_documents_metadata
ON public.search_documents USING gin (metadata jsonb_path_ops)
    WITH (gin_pending_list_limit = 512);

COMMENT ON INDEX public.search_documents_metadata IS
    'Documents by what their metadata contains, for filters of a search.';
