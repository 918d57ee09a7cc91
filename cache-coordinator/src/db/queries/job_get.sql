SELECT id, entry_id, starts, ends, edges, priority, state, error, created_at, ended_at
FROM precache_jobs WHERE id = $1
