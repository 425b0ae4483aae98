-- follow_search_generation(): trigger function and its triggers.
--
-- Promises   a transaction that has changed what may decide an answer advances the
--            generation it is cached under, whoever writes: once a transaction, also
--            for TRUNCATE, and also where session_replication_role is 'replica'.
--            A statement that changes no row advances nothing.
-- Called by  the triggers of the same name, AFTER each statement on
--            search_documents, embeddings, keyword_corpora, keyword_statistics  'documents'
--            embedding_models, search_settings, schema_migrations               'models'
--            retrieval_configs                                                  'configs'
-- Locks      see advance_generation(): none that anybody waits for.
--
-- Not seen: writes with these triggers disabled (pg_restore --disable-triggers), and what
-- logical replication applies, for it fires no statement triggers. After either call
-- renew_cache_identity().

CREATE FUNCTION public.follow_search_generation()
RETURNS trigger
LANGUAGE plpgsql
-- Nothing is SET, and names are written in full: see advance_generation(). Nor do the
-- triggers have a WHEN, which is parsed anew for every statement.
AS $$
DECLARE
    -- The arguments are an array, which is read anew each time that it is named.
    _namespace CONSTANT text := TG_ARGV[0];
    _revision bigint;
    _told text;
BEGIN
    -- What has been done is noted for the transaction, and with a savepoint the note is
    -- rolled back as the stamp is.
    -- The rows written are counted by the session for itself; what a transaction just
    -- before has written may be counted too, and then this advances for nothing.
    IF current_setting('cartrita_search.advanced_' || _namespace, true) = pg_current_xact_id_if_assigned()::text
        OR (
            pg_stat_get_xact_tuples_inserted(TG_RELID) = 0
            AND pg_stat_get_xact_tuples_updated(TG_RELID) = 0
            AND pg_stat_get_xact_tuples_deleted(TG_RELID) = 0
            AND current_setting('track_counts')::boolean
            AND TG_OP <> 'TRUNCATE'
        )
    THEN
        RETURN NULL;
    END IF;
    _revision := public.advance_generation(_namespace);
    _told := set_config('cartrita_search.advanced_' || _namespace, pg_current_xact_id()::text, true);
    RETURN NULL;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.follow_search_generation FROM PUBLIC;

COMMENT ON FUNCTION public.follow_search_generation IS
    'Advances the generation of cached results that the written table decides.';

CREATE TRIGGER follow_search_generation
    AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE
    ON public.search_documents
    FOR EACH STATEMENT
    EXECUTE FUNCTION public.follow_search_generation('documents');

CREATE TRIGGER follow_search_generation
    AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE
    ON public.embeddings
    FOR EACH STATEMENT
    EXECUTE FUNCTION public.follow_search_generation('documents');

CREATE TRIGGER follow_search_generation
    AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE
    ON public.keyword_corpora
    FOR EACH STATEMENT
    EXECUTE FUNCTION public.follow_search_generation('documents');

CREATE TRIGGER follow_search_generation
    AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE
    ON public.keyword_statistics
    FOR EACH STATEMENT
    EXECUTE FUNCTION public.follow_search_generation('documents');

CREATE TRIGGER follow_search_generation
    AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE
    ON public.embedding_models
    FOR EACH STATEMENT
    EXECUTE FUNCTION public.follow_search_generation('models');

CREATE TRIGGER follow_search_generation
    AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE
    ON public.search_settings
    FOR EACH STATEMENT
    EXECUTE FUNCTION public.follow_search_generation('models');

CREATE TRIGGER follow_search_generation
    AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE
    ON public.schema_migrations
    FOR EACH STATEMENT
    EXECUTE FUNCTION public.follow_search_generation('models');

CREATE TRIGGER follow_search_generation
    AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE
    ON public.retrieval_configs
    FOR EACH STATEMENT
    EXECUTE FUNCTION public.follow_search_generation('configs');

DO $$
BEGIN
    ALTER TABLE public.search_documents ENABLE ALWAYS TRIGGER follow_search_generation;
    ALTER TABLE public.embeddings ENABLE ALWAYS TRIGGER follow_search_generation;
    ALTER TABLE public.keyword_corpora ENABLE ALWAYS TRIGGER follow_search_generation;
    ALTER TABLE public.keyword_statistics ENABLE ALWAYS TRIGGER follow_search_generation;
    ALTER TABLE public.embedding_models ENABLE ALWAYS TRIGGER follow_search_generation;
    ALTER TABLE public.search_settings ENABLE ALWAYS TRIGGER follow_search_generation;
    ALTER TABLE public.schema_migrations ENABLE ALWAYS TRIGGER follow_search_generation;
    ALTER TABLE public.retrieval_configs ENABLE ALWAYS TRIGGER follow_search_generation;
END;
$$;
