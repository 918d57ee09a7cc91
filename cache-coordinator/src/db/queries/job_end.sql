-- Only a running job ends, and only once. Of an entry, the $4 jobs that ended last are kept beside
-- it.
WITH old AS (
    DELETE FROM precache_jobs WHERE id IN (
        SELECT id FROM precache_jobs
        WHERE entry_id = (SELECT entry_id FROM precache_jobs WHERE id = $1) AND state <> 'running'
        ORDER BY ended_at DESC, id OFFSET $4)
)
UPDATE precache_jobs SET state = $2, error = $3, ended_at = now()
WHERE id = $1 AND state = 'running'
