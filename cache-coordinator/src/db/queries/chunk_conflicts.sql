-- Entries of which another edge holds other bytes at the same place. Up to eight holders of an entry
-- are compared: each row was compared with as many when it was written.
WITH RECURSIVE reported AS (
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[]) AS t (entry_id, start_byte, checksum)
), holders AS (
    SELECT r.entry_id, 1 AS nth,
        (SELECT min(c.edge_id) FROM cache_chunks c WHERE c.entry_id = r.entry_id) AS edge_id
    FROM (SELECT DISTINCT entry_id FROM reported) r
    UNION ALL
    SELECT h.entry_id, h.nth + 1,
        (SELECT min(c.edge_id) FROM cache_chunks c WHERE c.entry_id = h.entry_id AND c.edge_id > h.edge_id)
    FROM holders h WHERE h.edge_id IS NOT NULL AND h.nth < 8
)
SELECT DISTINCT r.entry_id
FROM reported r
JOIN holders h ON h.entry_id = r.entry_id
-- A look-up each, whatever the planner takes the table's size for.
CROSS JOIN LATERAL (
    SELECT c.checksum FROM cache_chunks c
    WHERE c.entry_id = r.entry_id AND c.edge_id = h.edge_id AND c.start_byte = r.start_byte
    OFFSET 0
) held
WHERE held.checksum <> r.checksum
