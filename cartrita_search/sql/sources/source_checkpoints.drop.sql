DROP TABLE public.source_checkpoints;
