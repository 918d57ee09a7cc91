-- An entry is immutable: a later observation only shows that it is in use, and refreshes its tags.
-- Returns the new entries.
INSERT INTO cache_entries AS e
    (id, source, path, query, variant, validator, etag, last_modified, content_type, size,
        chunk_size, chunkless_since, tags)
SELECT t.id, t.source, t.path, t.query, t.variant, t.validator, t.etag, t.last_modified,
       t.content_type, t.size, t.chunk_size,
       CASE WHEN t.chunkless THEN now() END, string_to_array(t.tags, E'\n')
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
    $8::text[], $9::text[],
    $10::bigint[], $11::integer[], $12::boolean[], $13::text[])
    AS t (id, source, path, query, variant, validator, etag, last_modified, content_type, size,
        chunk_size, chunkless, tags)
ON CONFLICT (id) DO UPDATE
SET chunkless_since = CASE
        WHEN e.chunkless_since < now() - interval '1 minute' THEN now() ELSE e.chunkless_since
    END,
    tags = CASE WHEN excluded.tags = '{}' THEN e.tags ELSE excluded.tags END
WHERE e.chunkless_since < now() - interval '1 minute'
    OR (excluded.tags <> '{}' AND e.tags <> excluded.tags)
RETURNING e.id, e.xmax = 0 AS created
