-- Rows without bytes.
DELETE FROM cache_chunks c
WHERE c.entry_id = $1 AND c.edge_id = $2
  AND NOT EXISTS (SELECT 1 FROM unnest($3::bigint[]) AS t (start_byte) WHERE t.start_byte = c.start_byte)
RETURNING c.start_byte, c.end_byte
