-- vector_index_choice: what vector_index_plan answers, a composite type.
--
-- Promises   every column but m, ef_construction and lists has a value; those are
--            NULL for a method without such a parameter.
-- Called by  vector_index_plan makes one; vector_index_sql builds it.

CREATE TYPE public.vector_index_choice AS (
    model_name text,
    method text,
    storage text,
    m integer,
    ef_construction integer,
    lists integer,
    dimensions integer,
    row_count bigint,
    estimated_bytes bigint,
    budget_bytes bigint,
    reason text
);

COMMENT ON TYPE public.vector_index_choice IS
    'An index to build for one model: method (exact, hnsw, ivfflat), storage (vector, halfvec, bit), parameters, estimated size and the reason.';
