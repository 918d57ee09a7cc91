-- In one statement, because updating a row of cache_entries costs as much as its indexes. A join,
-- as in entry_with_chunks.sql.
UPDATE cache_entries e
SET invalidated_at = now(),
    chunkless_since = CASE
        WHEN e.chunkless_since IS NULL
            AND NOT EXISTS (SELECT 1 FROM cache_chunks c WHERE c.entry_id = e.id) THEN now()
        ELSE e.chunkless_since END
FROM unnest($1::uuid[]) AS t (id)
WHERE e.id = t.id
