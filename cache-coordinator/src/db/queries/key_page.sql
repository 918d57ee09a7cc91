-- All keys, in the order of the primary key, from behind one on.
SELECT source, path, query, variant
FROM cache_keys
WHERE (source, path, query, variant) > ($1, $2, $3, $4)
ORDER BY source, path, query, variant
LIMIT $5
