DELETE FROM cache_chunks WHERE entry_id = $1 RETURNING entry_id, edge_id, start_byte, end_byte
