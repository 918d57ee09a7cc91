-- Stores the reports of many edges in one statement. The join enforces the fence within the
-- statement itself; a replayed report finds equal rows and writes nothing.
INSERT INTO cache_chunks AS c (entry_id, edge_id, start_byte, end_byte, checksum)
SELECT t.entry_id, t.edge_id, t.start_byte, t.end_byte, t.checksum
FROM unnest($1::uuid[], $2::integer[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
    AS t (entry_id, edge_id, epoch, start_byte, end_byte, checksum)
JOIN edges e ON e.id = t.edge_id AND e.epoch = t.epoch
ON CONFLICT (entry_id, edge_id, start_byte) DO UPDATE
SET end_byte = excluded.end_byte, checksum = excluded.checksum, stored_at = excluded.stored_at
WHERE c.end_byte <> excluded.end_byte OR c.checksum <> excluded.checksum
