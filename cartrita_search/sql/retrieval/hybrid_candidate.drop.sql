DROP TYPE public.hybrid_candidate;
