-- Deletes a bounded number of entries; keys and jobs are deleted by cascade. An entry whose chunks
-- were reported after its source's rows were removed is left to the transaction that removes the
-- source.
DELETE FROM cache_entries WHERE id IN (
    SELECT e.id FROM cache_entries e
    WHERE e.source = $1
      AND NOT EXISTS (SELECT 1 FROM cache_chunks c WHERE c.entry_id = e.id)
    LIMIT $2)
