-- A join, because = ANY compares each row with each element when the plan reads the table.
UPDATE cache_entries e SET chunkless_since = NULL
FROM unnest($1::uuid[]) AS t (id)
WHERE e.id = t.id AND e.chunkless_since IS NOT NULL
