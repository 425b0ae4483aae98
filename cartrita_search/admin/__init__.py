"""The admin: one module for each page, registered by being imported here."""

from . import (  # noqa: F401
    cache_invalidations,
    embedding_models,
    embedding_refusals,
    embeddings,
    judgements,
    metrics,
    operator_actions,
    redis_sessions,
    retrieval_configs,
    schema_migrations,
    search_documents,
    search_settings,
    source_checkpoints,
    statistics,
    users,
)
