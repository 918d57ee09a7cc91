-- The entry was given to an edge that has not stored any of it yet.
UPDATE cache_entries SET chunkless_since = now() WHERE id = $1 AND chunkless_since IS NOT NULL
