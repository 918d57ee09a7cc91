DELETE FROM cache_keys WHERE entry_id = ANY($1) RETURNING entry_id
