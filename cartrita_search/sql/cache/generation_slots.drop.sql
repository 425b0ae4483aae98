DROP FUNCTION public.generation_slots;
