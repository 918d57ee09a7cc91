-- An entry is immutable: a second registration only shows that it is in use. Returns the new
-- entries.
INSERT INTO cache_entries AS e
    (id, source, path, query, variant, validator, etag, last_modified, content_type, size, chunk_size, chunkless_since)
SELECT t.id, t.source, t.path, t.query, t.variant, t.validator, t.etag, t.last_modified, t.content_type, t.size, t.chunk_size,
       CASE WHEN t.chunkless THEN now() END
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
            $10::bigint[], $11::integer[], $12::boolean[])
    AS t (id, source, path, query, variant, validator, etag, last_modified, content_type, size, chunk_size, chunkless)
ON CONFLICT (id) DO UPDATE SET chunkless_since = now()
WHERE e.chunkless_since < now() - interval '1 minute'
RETURNING e.id, e.xmax = 0 AS created
