DROP FUNCTION public.similarity_statement;
