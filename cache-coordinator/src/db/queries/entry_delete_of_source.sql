-- A bounded bite; keys and jobs go by cascade, chunk rows have gone before.
DELETE FROM cache_entries WHERE id IN (SELECT id FROM cache_entries WHERE source = $1 LIMIT $2)
