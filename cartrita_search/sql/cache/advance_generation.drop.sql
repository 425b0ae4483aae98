DROP FUNCTION public.advance_generation;
