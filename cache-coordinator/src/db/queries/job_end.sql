-- Only a running job ends, and only once.
UPDATE precache_jobs SET state = $2, error = $3, ended_at = now()
WHERE id = $1 AND state = 'running'
