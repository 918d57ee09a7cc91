DELETE FROM cache_keys k USING cache_entries e
WHERE k.entry_id = $1 AND e.id = k.entry_id
RETURNING e.source, e.path, e.query, e.variant
