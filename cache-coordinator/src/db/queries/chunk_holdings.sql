-- The coalesced ranges of the entries that each edge holds. Along the primary key.
SELECT h.entry_id, h.edge_id, e.name, e.url, e.state, lower(r) AS start_byte, upper(r) AS end_byte
FROM (
    SELECT entry_id, edge_id, range_agg(int8range(start_byte, end_byte)) AS held
    FROM cache_chunks
    WHERE entry_id = ANY($1::uuid[])
    GROUP BY entry_id, edge_id
) h
JOIN edges e ON e.id = h.edge_id
CROSS JOIN LATERAL unnest(h.held) AS r
ORDER BY h.entry_id, e.name, start_byte
