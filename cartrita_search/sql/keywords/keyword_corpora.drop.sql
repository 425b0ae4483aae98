DROP TABLE public.keyword_corpora;
