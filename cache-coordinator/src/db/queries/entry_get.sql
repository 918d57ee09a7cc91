SELECT id, source, path, query, variant, validator, etag, last_modified, content_type, size,
       chunk_size, pinned, created_at
FROM cache_entries WHERE id = $1
