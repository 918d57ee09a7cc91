-- Bytes of the ranges that each named edge holds. Chunks of one edge do not overlap, nor do the
-- ranges of a job.
SELECT e.name, coalesce(sum(held.bytes), 0)::bigint AS bytes
FROM edges e
LEFT JOIN LATERAL (
    SELECT least(c.end_byte, r.end_byte) - greatest(c.start_byte, r.start_byte) AS bytes
    FROM unnest($2::bigint[], $3::bigint[]) AS r (start_byte, end_byte)
    JOIN LATERAL (
        SELECT start_byte, end_byte FROM cache_chunks
        WHERE entry_id = $1 AND edge_id = e.id AND start_byte > r.start_byte - $4::bigint
            AND start_byte < r.end_byte AND end_byte > r.start_byte
    ) c ON true
) held ON true
WHERE e.name = ANY($5::text[])
GROUP BY e.name
