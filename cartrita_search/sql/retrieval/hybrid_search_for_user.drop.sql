DROP FUNCTION public.hybrid_search_for_user;
