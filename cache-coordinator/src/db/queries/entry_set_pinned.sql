UPDATE cache_entries SET pinned = $2 WHERE id = $1
RETURNING (SELECT before.pinned FROM cache_entries before WHERE before.id = $1)
