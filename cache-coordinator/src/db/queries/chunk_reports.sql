-- The facts needed to judge edges' reports, one row per report: is the session current, is the
-- entry known, its geometry.
SELECT t.number, e.name AS edge, e.epoch, c.size, c.chunk_size
FROM unnest($1::integer[], $2::uuid[]) WITH ORDINALITY AS t (edge_id, entry_id, number)
LEFT JOIN edges e ON e.id = t.edge_id
LEFT JOIN cache_entries c ON c.id = t.entry_id
ORDER BY t.number
