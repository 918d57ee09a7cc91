-- Rows of a page of entries ($1) for which the edge ($2) has no bytes: all but ($3, $4). NOT IN
-- over a subquery is always hashed; an anti join was planned as a loop over both if the table had
-- not been analysed yet: 10 s for 10,000 chunks.
DELETE FROM cache_chunks c
USING unnest($1::uuid[]) AS t (entry_id)
WHERE c.edge_id = $2 AND c.entry_id = t.entry_id
  AND (c.entry_id, c.start_byte) NOT IN (SELECT * FROM unnest($3::uuid[], $4::bigint[]))
RETURNING c.entry_id, c.start_byte, c.end_byte
