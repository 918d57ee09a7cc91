SELECT id, source, path, query, variant, validator, etag, last_modified, content_type, size,
       chunk_size, pinned, created_at
FROM cache_entries
WHERE source = $1 AND (path, query, id) > ($2, $3, $4)
ORDER BY path, query, id
LIMIT $5
