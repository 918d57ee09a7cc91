UPDATE edges
SET draining = $2,
    state = CASE
        WHEN state IN ('suspect', 'lost') THEN state
        WHEN $2 THEN 'draining'
        ELSE 'active'
    END
WHERE name = $1
RETURNING id, name, state, url, store_id, epoch, draining, bytes_used, bytes_allowed, last_seen
