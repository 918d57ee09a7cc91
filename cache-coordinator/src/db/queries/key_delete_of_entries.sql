-- Keys that were validated since point to what the origin has now.
DELETE FROM cache_keys WHERE entry_id = ANY($1) AND validated_at < $2 RETURNING entry_id
