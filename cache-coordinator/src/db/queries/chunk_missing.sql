-- The parts of [$2, $3) that no edge of $5 holds; one range scan of the primary key for each edge.
-- $4 is the chunk size: a chunk that overlaps the range starts less than that before it. Its end
-- follows from that too (the last chunk ends earlier, but so does the range), so the index
-- suffices, and no page of the table is read.
SELECT lower(r) AS start_byte, upper(r) AS end_byte
FROM (
    SELECT int8multirange(int8range($2, $3)) - coalesce(
        range_agg(int8range(c.start_byte, c.start_byte + $4::bigint)),
        '{}'::int8multirange
    ) AS missing
    FROM unnest($5::integer[]) AS wanted (edge_id)
    CROSS JOIN LATERAL (
        SELECT start_byte
        FROM cache_chunks
        WHERE entry_id = $1 AND edge_id = wanted.edge_id AND start_byte > $2::bigint - $4::bigint
            AND start_byte < $3
    ) c
) m
CROSS JOIN LATERAL unnest(m.missing) AS r
ORDER BY start_byte
LIMIT $6
