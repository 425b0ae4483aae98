ALTER TABLE public.search_settings
DROP COLUMN rebuild_growth,
DROP COLUMN rebuild_dead_share;
