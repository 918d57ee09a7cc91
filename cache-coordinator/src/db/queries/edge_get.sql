SELECT id, name, state, url, store_id, epoch, draining, bytes_used, bytes_allowed, last_seen
FROM edges WHERE name = $1
