-- Assigning the column to itself makes the row lock FOR UPDATE instead of FOR NO KEY UPDATE, so
-- that a takeover waits for a write of the old term that has already checked its lease
-- (lease_check.sql).
INSERT INTO coordinator_lease AS l ("only", holder, address, term, expires_at)
VALUES (true, $1, $2, 1, clock_timestamp() + $3::bigint * interval '1 millisecond')
ON CONFLICT ("only") DO UPDATE
SET "only" = true, holder = excluded.holder, address = excluded.address, term = l.term + 1,
    expires_at = excluded.expires_at
WHERE l.expires_at <= clock_timestamp()
RETURNING term
