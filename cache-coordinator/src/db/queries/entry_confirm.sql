-- The origin has this version, so its invalidation ends.
UPDATE cache_entries e SET invalidated_at = NULL
FROM unnest($1::uuid[]) AS t (id)
WHERE e.id = t.id AND e.invalidated_at IS NOT NULL
