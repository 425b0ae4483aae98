-- generation_slots(namespace) -> integer
--
-- Promises   how many slots the namespace has. So many transactions that have written
--            may be open at a time before one of them has to add a row.
-- Called by  advance_generation, search_generation.
-- Locks      none.
-- Volatility IMMUTABLE. Another number needs no change of stored rows.

CREATE FUNCTION public.generation_slots(p_namespace text)
RETURNS smallint
LANGUAGE sql
IMMUTABLE
PARALLEL SAFE
RETURN CASE p_namespace WHEN 'documents' THEN 16 ELSE 1 END::smallint;

REVOKE EXECUTE ON FUNCTION public.generation_slots FROM PUBLIC;

COMMENT ON FUNCTION public.generation_slots IS
    'How many slots of search_generations a namespace has.';
