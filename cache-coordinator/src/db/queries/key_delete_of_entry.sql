DELETE FROM cache_keys WHERE entry_id = $1 RETURNING source, path, query, variant
