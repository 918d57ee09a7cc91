-- Deletes the rows of entries whose bytes the edge has dropped; the epoch is the fence.
DELETE FROM cache_chunks c
USING edges e
WHERE e.id = $1 AND e.epoch = $2 AND c.edge_id = e.id AND c.entry_id = ANY($3)
RETURNING c.entry_id, c.edge_id, c.start_byte, c.end_byte
