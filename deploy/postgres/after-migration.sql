-- After the owner's coordinator has applied the migrations, by psql as chunk_cache_owner: what is
-- narrower than a table of every other kind. To be repeated after an upgrade; doing it twice does
-- no harm.
\set ON_ERROR_STOP on
BEGIN;
-- The record of migrations is the owner's.
REVOKE INSERT, UPDATE, DELETE ON schema_migrations FROM chunk_cache;
-- Not sources, whose headers may carry an origin's credential, and not cluster_secrets, the keys
-- between edges.
GRANT SELECT ON cache_entries, cache_keys, cache_chunks, edges, precache_jobs, coordinator_lease, cache_changes, schema_migrations
  TO chunk_cache_reader;
COMMIT;
