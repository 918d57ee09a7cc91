INSERT INTO precache_jobs (id, entry_id, starts, ends, edges, priority,
    window_start, window_end, time_zone, max_rate)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT (id) DO NOTHING
