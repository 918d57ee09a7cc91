-- Changes no key, so it never waits for a running write.
UPDATE coordinator_lease SET expires_at = clock_timestamp() + $3::bigint * interval '1 millisecond'
WHERE holder = $1 AND term = $2
