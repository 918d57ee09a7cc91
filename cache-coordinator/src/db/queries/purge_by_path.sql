-- The entries that a purge by key, prefix, glob or source selects: a range of
-- cache_entries_by_path. Excludes entries without anything left to purge, and those that this purge
-- has marked.
SELECT coalesce(array_agg(t.id), '{}')
FROM (
    SELECT e.id
    FROM cache_entries e
    WHERE e.source = $1 AND e.path BETWEEN $2 AND $3
      AND ($4::text IS NULL
          OR (e.path || CASE WHEN e.query = '' THEN '' ELSE '?' || e.query END) LIKE $4)
      AND (e.invalidated_at IS NULL OR e.invalidated_at < $5)
      AND (e.chunkless_since IS NULL OR EXISTS (SELECT 1 FROM cache_keys k WHERE k.entry_id = e.id))
    LIMIT $6
) t
