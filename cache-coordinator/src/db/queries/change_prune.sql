-- Deletes a bounded number of the oldest rows that are too old or too many, if $4 is the leader's
-- term. The newest row always stays, because the next revision is computed from it.
DELETE FROM cache_changes
WHERE revision IN (
    SELECT revision FROM cache_changes
    WHERE revision < (SELECT max(revision) FROM cache_changes)
    ORDER BY revision
    LIMIT $3
)
AND (changed_at < now() - $1::bigint * interval '1 second'
     OR revision <= (SELECT max(revision) FROM cache_changes) - $2::bigint)
AND EXISTS (SELECT 1 FROM coordinator_lease WHERE term = $4::bigint AND expires_at > now())
