-- redis_sessions: the registry of what v2 keeps for people in Redis.
--
-- Promises   session_key_hash is a SHA-256, never the key itself: who reads this
--            table cannot take a session over.
-- Called by  sessions.py; read in the admin.

CREATE TABLE public.redis_sessions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    session_key_hash text NOT NULL,
    user_id bigint,
    data_type text NOT NULL DEFAULT 'session',
    ttl_seconds integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}',

    CONSTRAINT redis_sessions_key UNIQUE (data_type, session_key_hash),
    CONSTRAINT redis_sessions_ttl_seconds CHECK (ttl_seconds > 0)
);

CREATE INDEX redis_sessions_user_id ON public.redis_sessions (user_id) WHERE user_id IS NOT NULL;
CREATE INDEX redis_sessions_expires_at ON public.redis_sessions (expires_at);

COMMENT ON TABLE public.redis_sessions IS
    'One live session or other Redis entry a row, under the hash of its key.';
