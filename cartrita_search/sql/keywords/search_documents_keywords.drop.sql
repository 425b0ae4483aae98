DROP TRIGGER search_documents_keywords ON public.search_documents;
DROP FUNCTION public.search_documents_keywords;
