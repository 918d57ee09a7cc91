-- A bounded number of an edge's rows.
DELETE FROM cache_chunks c
USING (SELECT entry_id, edge_id, start_byte FROM cache_chunks WHERE edge_id = $1 LIMIT $2) v
WHERE c.entry_id = v.entry_id AND c.edge_id = v.edge_id AND c.start_byte = v.start_byte
RETURNING c.entry_id, c.edge_id, c.start_byte, c.end_byte
