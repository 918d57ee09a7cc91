-- Begins a session with a new epoch, so that messages of older sessions change nothing. An edge
-- that is known takes no number from the sequence of ids, which would end after 2^31 sessions.
WITH known AS (
    UPDATE edges
    SET url = $2, store_id = $3, bytes_allowed = $4, epoch = epoch + 1, last_seen = now(),
        state = CASE WHEN draining THEN 'draining' ELSE 'active' END
    WHERE name = $1
    RETURNING id, name, state, url, store_id, epoch, draining, bytes_used, bytes_allowed, last_seen
), added AS (
    INSERT INTO edges (name, url, store_id, bytes_allowed)
    SELECT $1, $2, $3, $4 WHERE NOT EXISTS (SELECT FROM known)
    RETURNING id, name, state, url, store_id, epoch, draining, bytes_used, bytes_allowed, last_seen
)
SELECT * FROM known UNION ALL SELECT * FROM added
