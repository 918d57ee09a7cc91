-- Keyset pagination along cache_entries_by_path.
SELECT id, source, path, query, variant, validator, etag, last_modified, content_type, size,
       chunk_size, pinned, created_at
FROM cache_entries
WHERE (source, path, query, id) > ($1, $2, $3, $4)
ORDER BY source, path, query, id
LIMIT $5
