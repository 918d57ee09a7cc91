-- Its origin has this version: an invalidation of it is over.
UPDATE cache_entries SET invalidated_at = NULL WHERE id = ANY($1) AND invalidated_at IS NOT NULL
