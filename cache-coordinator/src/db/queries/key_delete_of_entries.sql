-- Keys that were validated since then point to the origin's present version, and remain.
DELETE FROM cache_keys WHERE entry_id = ANY($1) AND validated_at < $2 RETURNING entry_id
