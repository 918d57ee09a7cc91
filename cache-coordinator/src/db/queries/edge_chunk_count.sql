-- Bounded: counts no further than the limit.
SELECT count(*) FROM (SELECT 1 FROM cache_chunks WHERE edge_id = $1 LIMIT $2) held
