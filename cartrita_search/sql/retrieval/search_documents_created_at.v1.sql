-- search_documents_created_at: documents by time of creation.
--
-- Promises   a filter by it that keeps few documents finds them without reading the
--            others.
-- Called by  the planner, for both legs of a search.
-- Locks      SHARE UPDATE EXCLUSIVE on search_documents while it is built: nobody who
--            searches or writes waits.

CREATE INDEX CONCURRENTLY search_documents_created_at
ON public.search_documents (created_at);

COMMENT ON INDEX public.search_documents_created_at IS
    'Documents by time of creation, for filters of a search.';
