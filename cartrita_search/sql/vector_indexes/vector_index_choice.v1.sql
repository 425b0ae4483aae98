-- vector_index_choice: what vector_index_plan answers, a composite type.

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
