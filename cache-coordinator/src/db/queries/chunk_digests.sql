-- Computed from the rows themselves, because a summary could drift.
SELECT entry_id, count(*) AS chunk_count, bit_xor(checksum) AS checksum_xor
FROM cache_chunks
WHERE edge_id = $1
GROUP BY entry_id
