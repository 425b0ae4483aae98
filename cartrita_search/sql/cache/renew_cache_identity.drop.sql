DROP FUNCTION public.renew_cache_identity;
