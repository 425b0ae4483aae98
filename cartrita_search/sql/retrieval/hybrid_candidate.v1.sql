-- hybrid_candidate: a document that a leg of hybrid_search proposed, scored; a
-- composite type.
--
-- Promises   id and score have a value. The rest as in the result of hybrid_search.
-- Called by  hybrid_search, which ranks arrays of them.

CREATE TYPE public.hybrid_candidate AS (
    id uuid,
    score double precision,
    similarity double precision,
    bm25 double precision,
    vector_rank integer,
    keyword_rank integer,
    keyword_share double precision
);

COMMENT ON TYPE public.hybrid_candidate IS
    'A document that a leg of hybrid_search proposed: both scores, the rank in each leg, the fused score.';
