-- Chunks that were stored since then were fetched again, and remain.
DELETE FROM cache_chunks c
USING (SELECT h.entry_id, h.edge_id, h.start_byte FROM cache_chunks h
       WHERE h.entry_id = ANY($1) AND h.stored_at < $3 LIMIT $2) v
WHERE c.entry_id = v.entry_id AND c.edge_id = v.edge_id AND c.start_byte = v.start_byte
RETURNING c.entry_id, c.edge_id, c.start_byte, c.end_byte
