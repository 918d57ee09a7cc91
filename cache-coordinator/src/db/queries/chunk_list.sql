SELECT start_byte, end_byte, checksum FROM cache_chunks WHERE entry_id = $1 AND edge_id = $2
ORDER BY start_byte
