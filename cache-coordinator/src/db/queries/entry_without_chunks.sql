UPDATE cache_entries e SET chunkless_since = now()
WHERE e.id = ANY($1) AND e.chunkless_since IS NULL
  AND NOT EXISTS (SELECT 1 FROM cache_chunks c WHERE c.entry_id = e.id)
