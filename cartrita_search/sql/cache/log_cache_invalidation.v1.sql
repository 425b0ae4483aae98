-- log_cache_invalidation(): trigger function and its triggers.
--
-- Promises   what changes many people's answers at once, or all of one person's, leaves
--            a row in cache_invalidation_log, whoever writes: another default model
--            ('model_switch'), a built index ('rebuild'), a person's or the site's
--            configuration ('config_change'), search_settings ('settings_change').
--            That nothing stale is answered is follow_search_generation()'s doing, not
--            this one's.
-- Called by  the triggers of the same name, for each row.
-- Locks      none.

CREATE FUNCTION public.log_cache_invalidation()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
DECLARE
    _row CONSTANT jsonb := to_jsonb(CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END);
    _about jsonb := jsonb_build_object('operation', lower(TG_OP));
    _namespace text := 'models';
    _reason text;
BEGIN
    CASE TG_TABLE_NAME
        WHEN 'retrieval_configs' THEN
            _namespace := 'configs';
            _reason := 'config_change';
            _about := _about || jsonb_build_object('user', _row -> 'user_id', 'config', _row -> 'id');
        WHEN 'search_settings' THEN
            _reason := 'settings_change';
        ELSE
            _reason := CASE
                WHEN to_jsonb(OLD) -> 'indexed_at' = _row -> 'indexed_at' THEN 'model_switch'
                ELSE 'rebuild'
            END;
            _about := jsonb_build_object('model', _row -> 'name');
    END CASE;
    INSERT INTO cache_invalidation_log (cache_namespace, invalidation_reason, metadata)
    VALUES (_namespace, _reason, _about);
    RETURN NULL;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.log_cache_invalidation FROM PUBLIC;

COMMENT ON FUNCTION public.log_cache_invalidation IS
    'Leaves a row in cache_invalidation_log for a change of configuration, settings, default model or index.';

CREATE TRIGGER log_cache_invalidation
    AFTER INSERT OR UPDATE OR DELETE
    ON public.retrieval_configs
    FOR EACH ROW EXECUTE FUNCTION public.log_cache_invalidation();

CREATE TRIGGER log_cache_invalidation
    AFTER UPDATE
    ON public.search_settings
    FOR EACH ROW
    WHEN (OLD.* IS DISTINCT FROM NEW.*)
    EXECUTE FUNCTION public.log_cache_invalidation();

CREATE TRIGGER log_cache_invalidation
    AFTER UPDATE
    ON public.embedding_models
    FOR EACH ROW
    WHEN (
        NEW.is_default AND NOT OLD.is_default
        OR NEW.indexed_at IS DISTINCT FROM OLD.indexed_at
    )
    EXECUTE FUNCTION public.log_cache_invalidation();
