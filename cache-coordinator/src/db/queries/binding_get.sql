SELECT k.hash, e.id, e.source, e.path, e.query, e.variant, e.validator, e.etag,
       e.last_modified, e.content_type, e.size, e.chunk_size,
       e.pinned, e.created_at, coalesce(e.chunkless_since < now() - interval '3 minutes', false)
           AS idle,
       k.validated_at, k.fresh_until, k.initial_age, k.cache_control, k.vary
FROM unnest($1::uuid[]) AS t (hash)
JOIN cache_keys k ON k.hash = t.hash
JOIN cache_entries e ON e.id = k.entry_id
WHERE NOT is_purged(e, k.validated_at)
