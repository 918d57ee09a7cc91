SELECT count(*) AS chunk_count, bit_xor(checksum) AS checksum_xor
FROM cache_chunks
WHERE entry_id = $1 AND edge_id = $2
