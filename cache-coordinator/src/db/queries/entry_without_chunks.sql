UPDATE cache_entries e SET chunkless_since = now()
FROM unnest($1::uuid[]) AS t (id)
WHERE e.id = t.id AND e.chunkless_since IS NULL
  AND NOT EXISTS (SELECT 1 FROM cache_chunks c WHERE c.entry_id = e.id)
