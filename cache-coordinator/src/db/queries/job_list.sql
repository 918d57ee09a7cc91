SELECT id, entry_id, starts, ends, edges, priority, state, error, created_at, ended_at
FROM precache_jobs
WHERE $1 OR state = 'running'
ORDER BY created_at DESC, id
LIMIT $2
