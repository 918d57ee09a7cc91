DELETE FROM cache_chunks c
USING unnest($1::uuid[], $2::integer[], $3::bigint[], $4::bigint[])
    AS t (entry_id, edge_id, epoch, start_byte),
      edges e
WHERE e.id = t.edge_id AND e.epoch = t.epoch
  AND c.entry_id = t.entry_id AND c.edge_id = t.edge_id AND c.start_byte = t.start_byte
