-- The latest first, along cache_entries_invalidated.
SELECT id FROM cache_entries WHERE invalidated_at IS NOT NULL ORDER BY invalidated_at DESC LIMIT $1
