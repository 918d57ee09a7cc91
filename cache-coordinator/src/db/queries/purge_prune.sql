-- Keeps the $1 newest.
DELETE FROM cache_purges
WHERE is_done
  AND number <= (SELECT number FROM cache_purges ORDER BY number DESC OFFSET $1 LIMIT 1)
