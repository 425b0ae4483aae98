ALTER TABLE public.search_settings
ALTER COLUMN keyword_candidate_budget SET DEFAULT 5000;

UPDATE public.search_settings SET keyword_candidate_budget = DEFAULT
WHERE keyword_candidate_budget = 2500;
