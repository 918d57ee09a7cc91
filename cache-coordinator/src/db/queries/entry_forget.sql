-- Checks entry_unused.sql's conditions again in the transaction that deletes the entries; keys and
-- ended jobs are deleted by cascade.
DELETE FROM cache_entries e
WHERE e.id = ANY($3)
  AND e.chunkless_since < now() - $1::bigint * interval '1 second'
  AND NOT e.pinned
  AND (e.invalidated_at IS NULL OR $2 OR e.invalidated_at < now() - interval '7 days')
  AND NOT EXISTS (
      SELECT 1 FROM precache_jobs j
      WHERE j.entry_id = e.id AND (j.state = 'running' OR j.ended_at > now() - interval '1 day'))
