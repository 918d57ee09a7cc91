-- Entries of which another edge holds different bytes at the same position. Up to eight holders of
-- an entry are compared: each row was compared with as many when it was written.
WITH RECURSIVE reported AS (
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[])
        AS t (entry_id, start_byte, checksum)
), holders AS (
    SELECT r.entry_id, 1 AS nth,
        (SELECT min(c.edge_id) FROM cache_chunks c WHERE c.entry_id = r.entry_id) AS edge_id
    FROM (SELECT DISTINCT entry_id FROM reported) r
    UNION ALL
    SELECT h.entry_id, h.nth + 1,
        (SELECT min(c.edge_id) FROM cache_chunks c
            WHERE c.entry_id = h.entry_id AND c.edge_id > h.edge_id)
    FROM holders h WHERE h.edge_id IS NOT NULL AND h.nth < 8
)
SELECT DISTINCT r.entry_id
FROM reported r
JOIN holders h ON h.entry_id = r.entry_id
-- One look-up each in the order of the primary key: with three equalities instead, a planner
-- without statistics used the index by edge and read all rows of the entry each time.
CROSS JOIN LATERAL (
    SELECT c.entry_id, c.edge_id, c.start_byte, c.checksum FROM cache_chunks c
    WHERE (c.entry_id, c.edge_id, c.start_byte) >= (r.entry_id, h.edge_id, r.start_byte)
    ORDER BY c.entry_id, c.edge_id, c.start_byte
    LIMIT 1
) held
WHERE (held.entry_id, held.edge_id, held.start_byte) = (r.entry_id, h.edge_id, r.start_byte)
  AND held.checksum <> r.checksum
