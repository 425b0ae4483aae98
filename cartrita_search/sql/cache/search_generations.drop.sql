DROP TABLE public.search_generations;
