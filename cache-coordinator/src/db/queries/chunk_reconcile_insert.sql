-- Bytes without rows, and rows that differ from the bytes.
INSERT INTO cache_chunks AS c (entry_id, edge_id, start_byte, end_byte, checksum)
SELECT t.entry_id, $1, t.start_byte, t.end_byte, t.checksum
FROM unnest($2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[])
    AS t (entry_id, start_byte, end_byte, checksum)
ON CONFLICT (entry_id, edge_id, start_byte) DO UPDATE
SET end_byte = excluded.end_byte, checksum = excluded.checksum, stored_at = excluded.stored_at
WHERE c.end_byte <> excluded.end_byte OR c.checksum <> excluded.checksum
RETURNING c.entry_id, c.start_byte, c.end_byte
