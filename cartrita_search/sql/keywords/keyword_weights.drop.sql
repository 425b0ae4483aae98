DROP FUNCTION public.keyword_weights;
