"""Cached search results; the guarded Redis backend is in `guarded_redis`."""

from __future__ import annotations

from .guarded_redis import GuardedRedisCache

__all__ = ["GuardedRedisCache"]
