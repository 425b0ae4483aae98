DROP TABLE public.search_documents;
