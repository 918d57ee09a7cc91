-- Roles of the chunk cache in its own database. Run with psql as a superuser, or as the database's
-- owner with CREATEROLE:
--    createdb cache_chunks
--    psql -d cache_chunks -f roles.sql
-- Then set the passwords (\password chunk_cache), or let pg_hba.conf require certificates.
--
-- chunk_cache_owner owns the tables: a coordinator started with its URL applies migrations. Only
-- for upgrades.
-- chunk_cache is used by coordinators, with --no-migrate: reads and writes rows, changes no table.
-- chunk_cache_reader is for operators and their tools: reads what is cached where, but no secret.
\set ON_ERROR_STOP on
BEGIN;
CREATE ROLE chunk_cache_owner LOGIN;
CREATE ROLE chunk_cache LOGIN;
CREATE ROLE chunk_cache_reader LOGIN;

-- Only these three roles may connect, and only the owner may create tables.
SELECT format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database()) \gexec
SELECT format('GRANT CONNECT ON DATABASE %I TO chunk_cache_owner, chunk_cache, chunk_cache_reader',
    current_database()) \gexec
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO chunk_cache_owner;
GRANT USAGE ON SCHEMA public TO chunk_cache, chunk_cache_reader;

-- For all tables, including those of later migrations. Locking rows (FOR SHARE) needs UPDATE.
ALTER DEFAULT PRIVILEGES FOR ROLE chunk_cache_owner IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO chunk_cache;
ALTER DEFAULT PRIVILEGES FOR ROLE chunk_cache_owner IN SCHEMA public
    GRANT USAGE ON SEQUENCES TO chunk_cache;
COMMIT;
