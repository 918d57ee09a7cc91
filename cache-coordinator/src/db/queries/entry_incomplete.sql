-- Entries of which the edge holds some bytes but not all, along cache_chunks_by_edge; stops at the
-- limit.
SELECT h.entry_id, h.held_bytes
FROM (
    SELECT entry_id, sum(end_byte - start_byte)::bigint AS held_bytes
    FROM cache_chunks
    WHERE edge_id = $1 AND entry_id > $2
    GROUP BY entry_id
) h
JOIN cache_entries e ON e.id = h.entry_id
WHERE h.held_bytes < e.size
ORDER BY h.entry_id
LIMIT $3
