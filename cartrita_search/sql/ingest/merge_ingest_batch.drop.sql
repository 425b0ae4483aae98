DROP FUNCTION public.merge_ingest_batch;
