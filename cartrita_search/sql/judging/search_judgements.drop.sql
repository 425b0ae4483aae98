DROP TABLE public.search_judgements;
