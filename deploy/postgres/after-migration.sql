-- Run this with psql as chunk_cache_owner after the owner's coordinator has applied the migrations.
-- It restricts rights on individual tables. Repeat it after an upgrade; running it twice does no
-- harm.
\set ON_ERROR_STOP on
BEGIN;
-- Only the owner changes the record of migrations.
REVOKE INSERT, UPDATE, DELETE ON schema_migrations FROM chunk_cache;
-- Neither sources, whose headers may contain an origin's credentials, nor cluster_secrets, the keys
-- between edges.
GRANT SELECT ON cache_entries, cache_keys, cache_chunks, edges, precache_jobs, coordinator_lease,
    cache_changes, schema_migrations
  TO chunk_cache_reader;
COMMIT;
