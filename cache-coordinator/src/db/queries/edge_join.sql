-- Begins a session with a new epoch, so that messages of older sessions change nothing.
INSERT INTO edges (name, url, store_id, bytes_allowed)
VALUES ($1, $2, $3, $4)
ON CONFLICT (name) DO UPDATE
SET url = excluded.url, store_id = excluded.store_id, bytes_allowed = excluded.bytes_allowed,
    epoch = edges.epoch + 1, last_seen = now(),
    state = CASE WHEN edges.draining THEN 'draining' ELSE 'active' END
RETURNING id, name, state, url, store_id, epoch, draining, bytes_used, bytes_allowed, last_seen
