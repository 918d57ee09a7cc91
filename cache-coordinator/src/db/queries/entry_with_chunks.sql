UPDATE cache_entries SET chunkless_since = NULL WHERE id = ANY($1) AND chunkless_since IS NOT NULL
