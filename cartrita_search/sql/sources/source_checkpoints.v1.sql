-- source_checkpoints: how far an unfinished run of sync_documents or import_v1 has come.
--
-- Promises   a row stands for a source whose run has begun and not ended;
--            last_key is the primary key, as text, of the last source row whose
--            documents are committed, NULL before the first batch.
-- Called by  sources.py, which writes it in the transaction of each batch and
--            deletes it at the end of the run; import_v1, whose rows are named
--            "import_v1 <table> <model>".
-- Locks      a batch holds its source's row, so that batches of one source
--            follow each other whichever process they run in.

CREATE TABLE public.source_checkpoints (
    source_table text PRIMARY KEY,
    last_key text,
    rows bigint NOT NULL DEFAULT 0,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT source_checkpoints_rows CHECK (rows >= 0)
);

COMMENT ON TABLE public.source_checkpoints IS
    'An unfinished run of sync_documents or import_v1 a row: the last key whose documents are stored.';
