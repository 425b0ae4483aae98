-- swap_vector_index(model row, by whom) -> void
--
-- Promises   the index <name>__new is the model's (where the row's method is not
--            exact), the former one is <name>__old, and the model's row says of its
--            index what the given one says: searches that begin after the commit go by
--            the new index, and find what a large load had put aside.
-- Called by  rebuild_vector_indexes, and the command of that name, with a row of
--            tune_vector_index.
-- Locks      SHARE UPDATE EXCLUSIVE on the indexes, which neither searches nor writers
--            feel, and the model's row, which writers' foreign keys do not wait for.

CREATE FUNCTION public.swap_vector_index(p_model embedding_models, p_by text DEFAULT current_user)
RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
DECLARE
    _name CONSTANT text := vector_index_name(p_model.name);
BEGIN
    IF to_regclass(format('public.%I', _name)) IS NOT NULL THEN
        EXECUTE format('ALTER INDEX public.%I RENAME TO %I', _name, _name || '__old');
    END IF;
    IF p_model.index_method <> 'exact' THEN
        EXECUTE format('ALTER INDEX public.%I RENAME TO %I', _name || '__new', _name);
    END IF;
    UPDATE embedding_models AS m
    SET index_method = p_model.index_method,
        index_storage = p_model.index_storage,
        hnsw_m = p_model.hnsw_m,
        hnsw_ef_construction = p_model.hnsw_ef_construction,
        ivfflat_lists = p_model.ivfflat_lists,
        ef_search = p_model.ef_search,
        probes = p_model.probes,
        target_recall = p_model.target_recall,
        measured_recall = p_model.measured_recall,
        indexed_rows = p_model.indexed_rows,
        visible_segment = p_model.visible_segment,
        indexed_by = p_by,
        indexed_at = clock_timestamp()
    WHERE m.name = p_model.name;
END;
$$;

REVOKE EXECUTE ON FUNCTION public.swap_vector_index FROM PUBLIC;

COMMENT ON FUNCTION public.swap_vector_index IS
    'Makes a model''s __new index the one that searches use, and records what it is.';
