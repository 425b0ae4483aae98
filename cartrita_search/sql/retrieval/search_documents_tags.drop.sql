DROP INDEX public.search_documents_tags;
