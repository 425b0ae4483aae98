-- redis_sessions.revoked_at: what is not to be believed although Redis may still have it.
--
-- Promises   A row with a time here stays until it expires. Until then no process takes
--            the entry for a live one, whatever a Redis that was away when it was
--            deleted, or went back to an older state, brings up again.
-- Called by  sessions.py, which reads the revoked sessions once a second in each process
--            that serves people.
-- Locks      ACCESS EXCLUSIVE on redis_sessions for an instant, and while the index of
--            its few rows is built.

ALTER TABLE public.redis_sessions
ADD COLUMN revoked_at timestamptz;

CREATE INDEX redis_sessions_revoked ON public.redis_sessions (expires_at)
WHERE revoked_at IS NOT NULL;

COMMENT ON COLUMN public.redis_sessions.revoked_at IS
    'When it was revoked, or ended while Redis did not answer; NULL: it is live.';
