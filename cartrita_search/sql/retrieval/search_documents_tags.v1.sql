-- search_documents_tags: documents by tag.
--
-- Promises   a filter by it that keeps few documents finds them without reading the
--            others.
-- Called by  the planner, for both legs of a search.
-- Locks      SHARE UPDATE EXCLUSIVE on search_documents while it is built: nobody who
--            searches or writes waits.
--
-- The limit of the pending list is that of search_documents_search_vector, for its reason.

CREATE INDEX CONCURRENTLY search_documents_tags
ON public.search_documents USING gin (tags)
    WITH (gin_pending_list_limit = 512);

COMMENT ON INDEX public.search_documents_tags IS
    'Documents by tag, for filters of a search.';
