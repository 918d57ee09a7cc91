-- Computed from the rows themselves: no summary that could drift.
SELECT entry_id, count(*) AS chunk_count, bit_xor(checksum) AS checksum_xor
FROM cache_chunks
WHERE edge_id = $1
GROUP BY entry_id
