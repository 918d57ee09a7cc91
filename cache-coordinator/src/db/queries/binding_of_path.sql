-- All variants of a path, the most recently validated first.
SELECT e.id, e.source, e.path, e.query, e.variant, e.validator, e.etag, e.last_modified,
       e.content_type, e.size, e.chunk_size,
       e.pinned, e.created_at, coalesce(e.chunkless_since < now() - interval '3 minutes', false)
           AS idle,
       k.validated_at, k.fresh_until, k.initial_age, k.cache_control, k.vary
FROM cache_entries e JOIN cache_keys k ON k.entry_id = e.id
WHERE e.source = $1 AND e.path = $2 AND e.query = $3 AND NOT is_purged(e, k.validated_at)
ORDER BY k.validated_at DESC, e.variant
LIMIT 100
