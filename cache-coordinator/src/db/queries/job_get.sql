SELECT id, entry_id, starts, ends, edges, priority, state, error, created_at,
    window_start, window_end, time_zone, max_rate
FROM precache_jobs WHERE id = $1
