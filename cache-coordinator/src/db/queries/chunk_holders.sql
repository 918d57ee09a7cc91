-- Edges holding any byte of [$2, $3).
SELECT DISTINCT e.id, e.name
FROM edges e
JOIN LATERAL (
    SELECT 1 FROM cache_chunks
    WHERE entry_id = $1 AND edge_id = e.id AND start_byte > $2::bigint - $4::bigint
        AND start_byte < $3 AND end_byte > $2
    LIMIT 1
) c ON true
ORDER BY e.name
