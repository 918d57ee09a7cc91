-- Cheap at any size: counts rows up to the limit, and beyond it uses the planner's estimate and the
-- edges' reports.
SELECT (SELECT count(*) FROM (SELECT 1 FROM cache_entries LIMIT $1) x) AS entries_counted,
       (SELECT reltuples::bigint FROM pg_class WHERE oid = 'cache_entries'::regclass)
           AS entries_estimated,
       counted.chunks AS chunks_counted,
       counted.bytes AS bytes_counted,
       (SELECT reltuples::bigint FROM pg_class WHERE oid = 'cache_chunks'::regclass)
           AS chunks_estimated,
       (SELECT coalesce(sum(bytes_used), 0)::bigint FROM edges) AS bytes_reported,
       (SELECT count(*) FROM edges) AS edges_total,
       (SELECT count(*) FROM edges WHERE state = 'active') AS edges_active,
       (SELECT count(*) FROM precache_jobs WHERE state = 'running') AS jobs_running,
       (SELECT coalesce(max(revision), 0) FROM cache_changes) AS revision
FROM (
    SELECT count(*) AS chunks, coalesce(sum(end_byte - start_byte), 0)::bigint AS bytes
    FROM (SELECT start_byte, end_byte FROM cache_chunks LIMIT $1) y
) counted
