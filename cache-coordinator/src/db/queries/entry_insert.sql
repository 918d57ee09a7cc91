-- An entry is immutable: meeting it again changes nothing.
INSERT INTO cache_entries (id, source, path, query, variant, validator, etag, last_modified, content_type, size, chunk_size)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (id) DO NOTHING
