-- pgvector, in the schema that every function of this package pins.
--
-- Promises   type vector and its index methods exist.
-- Locks      none that a reader or writer of a table would notice.
--
-- Nothing reverses this file: a v1 database had the extension before us, and
-- dropping it would take v1's own vector columns along.

CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public;
