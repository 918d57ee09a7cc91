INSERT INTO precache_jobs (id, entry_id, starts, ends, edges, priority)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (id) DO NOTHING
