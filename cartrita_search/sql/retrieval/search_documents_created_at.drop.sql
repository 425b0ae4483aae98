DROP INDEX CONCURRENTLY IF EXISTS public.search_documents_created_at;
