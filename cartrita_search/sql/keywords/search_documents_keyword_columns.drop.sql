ALTER TABLE public.search_documents
DROP COLUMN search_vector,
DROP COLUMN keyword_vector,
RESET (toast_tuple_target);
