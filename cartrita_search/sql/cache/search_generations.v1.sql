-- search_generations: the state of what cached search results were made from.
--
-- Promises   the newest stamps of a namespace's slots, and the extra ones beside them,
--            are other ones after every transaction that has advanced it, and never again
--            what they once were: a stamp is random, so neither a lost transaction that is
--            done again (a failover, a restore) nor a copy of the database brings one
--            back. They change with the commit of what they stand for.
-- Called by  advance_generation() writes it, search_generation() reads it.
-- Locks      none that anybody waits for: see advance_generation().
--
-- One transaction at a time writes to a slot: a new row, of the next revision. Of a slot
-- the newest revision counts, and the former ones are deleted some time. Writers who find
-- all slots taken add a row to the slot after the last, where every row counts; a later
-- one sweeps those up.
-- While a long transaction (pg_dump) keeps the deleted rows in place, whoever looked for
-- all that count would step over each: 2 ms with 200,000 of them. By the index, newest
-- first, it is the same 0.2 ms always.

CREATE TABLE public.search_generations (
    -- Compared byte by byte, not by a language's rules.
    namespace text COLLATE "C" NOT NULL,
    slot smallint NOT NULL,
    revision bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    -- The time as well, for setseed() makes random() say again what it has said. A random
    -- UUID asks for the operating system's entropy, and takes longer than the whole row.
    stamp double precision NOT NULL DEFAULT random() * date_part('epoch', clock_timestamp()),

    -- One index and no check: each costs every writer.
    PRIMARY KEY (namespace, slot, revision)
)
WITH (
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = -1,
    -- Giving pages back to the operating system would lock readers out.
    vacuum_truncate = off
);

-- What makes this database's results its own, whatever else is equal.
INSERT INTO public.search_generations (namespace, slot) VALUES ('identity', 0);

COMMENT ON TABLE public.search_generations IS
    'Stamps that change with every commit that may change an answer; cached results are kept under them.';
