DROP TABLE public.keyword_statistics;
