-- The entry was given to an edge that has stored nothing of it yet.
UPDATE cache_entries SET chunkless_since = now() WHERE id = $1 AND chunkless_since IS NOT NULL
