SELECT id, entry_id, starts, ends, edges, priority, state, error, created_at,
    window_start, window_end, time_zone, max_rate
FROM precache_jobs
WHERE $1 OR state = 'running'
ORDER BY created_at DESC, id
LIMIT $2
