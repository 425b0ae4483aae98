DROP FUNCTION public.sweep_generations;
