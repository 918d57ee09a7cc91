SELECT id, name, state, url, store_id, epoch, draining, bytes_used, bytes_allowed, first_seen,
       last_seen
FROM edges WHERE name = $1
