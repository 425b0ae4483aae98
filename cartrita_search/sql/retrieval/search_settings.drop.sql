DROP TABLE public.search_settings;
