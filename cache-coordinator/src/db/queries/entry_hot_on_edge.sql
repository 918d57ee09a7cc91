-- Entries of which an edge holds a part that are pinned, or changed in the last ten minutes. Runs
-- once for each session of a draining edge.
SELECT e.id
FROM cache_entries e
WHERE (e.pinned OR e.id IN (
    SELECT entry_id FROM cache_changes
    WHERE changed_at > now() - interval '10 minutes' AND entry_id IS NOT NULL
))
AND EXISTS (SELECT 1 FROM cache_chunks c WHERE c.edge_id = $1 AND c.entry_id = e.id)
ORDER BY e.pinned DESC, e.id
LIMIT $2
