-- Entries without chunks on any edge that were not requested for $1 seconds, the oldest first.
-- Pinned ones stay, and those with a job. Invalidated ones stay for disconnected edges, unless
-- there are too many ($2).
SELECT e.id
FROM cache_entries e
WHERE e.chunkless_since < now() - $1::bigint * interval '1 second'
  AND NOT e.pinned
  AND (e.invalidated_at IS NULL OR $2 OR e.invalidated_at < now() - interval '7 days')
  AND NOT EXISTS (
      SELECT 1 FROM precache_jobs j
      WHERE j.entry_id = e.id AND (j.state = 'running' OR j.ended_at > now() - interval '1 day'))
ORDER BY e.chunkless_since
LIMIT $3
