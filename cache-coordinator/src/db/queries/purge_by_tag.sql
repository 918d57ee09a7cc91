-- The same by tag, along cache_entries_by_tag; an empty source means all sources.
SELECT coalesce(array_agg(t.id), '{}')
FROM (
    SELECT e.id
    FROM cache_entries e
    WHERE e.tags @> ARRAY[$2::text] AND e.tags <> '{}' AND ($1::text = '' OR e.source = $1)
      AND (e.invalidated_at IS NULL OR e.invalidated_at < $3)
      AND (e.chunkless_since IS NULL OR EXISTS (SELECT 1 FROM cache_keys k WHERE k.entry_id = e.id))
    LIMIT $4
) t
