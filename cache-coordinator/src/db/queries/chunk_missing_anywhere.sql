-- The parts of [$2, $3) that no edge holds. Only edges that hold a part of the entry are visited,
-- by a skip scan of the primary key: the cost does not grow with the number of edges in the
-- cluster. $4 is the chunk size: a chunk that overlaps the range starts less than that before it,
-- and ends that far after its start, so the index suffices (see chunk_missing.sql).
WITH RECURSIVE holder (edge_id) AS (
    (SELECT edge_id FROM cache_chunks WHERE entry_id = $1 ORDER BY edge_id LIMIT 1)
    UNION ALL
    SELECT (
        SELECT c.edge_id FROM cache_chunks c WHERE c.entry_id = $1 AND c.edge_id > h.edge_id
        ORDER BY c.edge_id LIMIT 1
    )
    FROM holder h
    WHERE h.edge_id IS NOT NULL
)
SELECT lower(r) AS start_byte, upper(r) AS end_byte
FROM (
    SELECT int8multirange(int8range($2, $3)) - coalesce(
        range_agg(int8range(c.start_byte, c.start_byte + $4::bigint)),
        '{}'::int8multirange
    ) AS missing
    FROM holder
    CROSS JOIN LATERAL (
        SELECT start_byte
        FROM cache_chunks
        WHERE entry_id = $1 AND edge_id = holder.edge_id AND start_byte > $2::bigint - $4::bigint
            AND start_byte < $3
    ) c
) m
CROSS JOIN LATERAL unnest(m.missing) AS r
ORDER BY start_byte
LIMIT $5
