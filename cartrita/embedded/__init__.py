"""A real PostgreSQL and a real Redis for development and tests, out of two wheels.

Nothing here starts at import. PostgreSQL starts with the first connection made
through the database engine ``cartrita.embedded`` (see `base`), Redis with the
first one made through `redis.EmbeddedConnectionPool`; both go on running when
the process ends, and ``manage.py embedded stop`` stops them. For Linux and
macOS; not for production.
"""
