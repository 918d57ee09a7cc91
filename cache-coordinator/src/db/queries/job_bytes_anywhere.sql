-- Bytes of the ranges that any edge holds.
SELECT coalesce(sum(upper(r) - lower(r)), 0)::bigint AS bytes
FROM (
    SELECT range_agg(int8range(greatest(c.start_byte, r.start_byte), least(c.end_byte, r.end_byte)))
        AS held
    FROM unnest($2::bigint[], $3::bigint[]) AS r (start_byte, end_byte)
    CROSS JOIN edges e
    CROSS JOIN LATERAL (
        SELECT start_byte, end_byte FROM cache_chunks
        WHERE entry_id = $1 AND edge_id = e.id AND start_byte > r.start_byte - $4::bigint
            AND start_byte < r.end_byte AND end_byte > r.start_byte
    ) c
) h
CROSS JOIN LATERAL unnest(h.held) AS r
