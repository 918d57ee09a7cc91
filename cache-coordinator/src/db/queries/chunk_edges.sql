-- Edges that hold any part of the entry, by a skip scan of the primary key: one probe per edge,
-- however many chunks each holds.
WITH RECURSIVE holder (edge_id) AS (
    (SELECT edge_id FROM cache_chunks WHERE entry_id = $1 ORDER BY edge_id LIMIT 1)
    UNION ALL
    SELECT (
        SELECT c.edge_id FROM cache_chunks c WHERE c.entry_id = $1 AND c.edge_id > h.edge_id
        ORDER BY c.edge_id LIMIT 1
    )
    FROM holder h
    WHERE h.edge_id IS NOT NULL
)
SELECT edge_id FROM holder WHERE edge_id IS NOT NULL
