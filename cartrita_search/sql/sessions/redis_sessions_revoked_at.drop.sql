ALTER TABLE public.redis_sessions DROP COLUMN revoked_at;
