-- All variants of a path, the most recently validated first.
SELECT e.id, e.source, e.path, e.query, e.variant, e.validator, e.etag, e.last_modified, e.content_type, e.size, e.chunk_size,
       e.pinned, e.created_at,
       k.validated_at, k.fresh_until, k.initial_age, k.cache_control, k.vary
FROM cache_keys k JOIN cache_entries e ON e.id = k.entry_id
WHERE k.source = $1 AND k.path = $2 AND k.query = $3
ORDER BY k.validated_at DESC, k.variant
LIMIT 100
