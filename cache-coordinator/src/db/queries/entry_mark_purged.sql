UPDATE cache_entries SET invalidated_at = now() WHERE id = ANY($1)
