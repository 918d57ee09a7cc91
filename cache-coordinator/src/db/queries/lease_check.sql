-- First in every write of a leader. KEY SHARE is blocked by a takeover, but not by a renewal.
SELECT 1 FROM coordinator_lease
WHERE holder = $1 AND term = $2 AND expires_at > clock_timestamp() FOR KEY SHARE
