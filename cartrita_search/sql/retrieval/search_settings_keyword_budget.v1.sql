-- search_settings.keyword_candidate_budget: a smaller default.
--
-- Promises   2500 instead of 5000 where nobody has set another.
-- Locks      ACCESS EXCLUSIVE on search_settings for an instant: it has one row.
--
-- On 117,000 WordNet senses 2,000 keep 99.6 % of the ten best by keywords and all
-- of the ten best together, 1,000 keep 96 %; a keyword query's time is mostly these
-- candidates. See tests/benchmarks/ for quality and time by budget.

ALTER TABLE public.search_settings
ALTER COLUMN keyword_candidate_budget SET DEFAULT 2500;

UPDATE public.search_settings SET keyword_candidate_budget = DEFAULT
WHERE keyword_candidate_budget = 5000;

COMMENT ON COLUMN public.search_settings.keyword_candidate_budget IS
    'Sum of document frequencies up to which query lexemes, rarest first, propose candidates.';
