DROP INDEX public.search_documents_created_at;
