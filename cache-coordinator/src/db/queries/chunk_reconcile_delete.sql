-- Rows without bytes. NOT IN over a subquery is hashed whatever the statistics say; an anti join
-- was planned as a loop over both where the table had not been analysed yet: 10 s for 10,000
-- chunks.
DELETE FROM cache_chunks c
WHERE c.entry_id = $1 AND c.edge_id = $2
  AND c.start_byte NOT IN (SELECT unnest($3::bigint[]))
RETURNING c.start_byte, c.end_byte
