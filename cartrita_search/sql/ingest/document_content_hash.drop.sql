DROP FUNCTION public.document_content_hash;
