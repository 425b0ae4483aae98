-- search_filter: what restricts a search, a composite type.
--
-- Promises   a NULL field does not restrict. Each of the others must hold:
--              user_id        the document is that person's, or shared
--              sources        its source_table is one of these
--              metadata       its metadata contains this object
--              tags           it has every one of these tags
--              created_after  it was stored later than this
-- Called by  make_search_filter makes one; both legs of a search apply it.

CREATE TYPE public.search_filter AS (
    user_id bigint,
    sources text [],
    metadata jsonb,
    tags text [],
    created_after timestamptz
);

COMMENT ON TYPE public.search_filter IS
    'What restricts a search: owner, sources, metadata, tags, time of creation; NULL fields do not.';
