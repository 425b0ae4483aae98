DROP TABLE public.redis_sessions;
