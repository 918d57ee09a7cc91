-- Points keys to entries; returns the keys that point to them now. A replayed observation is old:
-- it does not override a later validation, an invalidation, or a purge whose rows are not marked
-- yet. vary comes as lines, because arrays of different lengths cannot form one array.
INSERT INTO cache_keys AS k
    (hash, entry_id, validated_at, fresh_until, initial_age, cache_control, vary)
SELECT t.hash, t.entry_id, t.validated_at, t.fresh_until, t.initial_age, t.cache_control,
       string_to_array(t.vary, E'\n')
FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::timestamptz[], $5::integer[],
    $6::text[], $7::text[])
    AS t (hash, entry_id, validated_at, fresh_until, initial_age, cache_control, vary)
WHERE NOT $8::boolean OR NOT EXISTS (SELECT 1 FROM cache_entries e WHERE e.id = t.entry_id
                                      AND (e.invalidated_at IS NOT NULL
                                          OR is_purged(e, '-infinity')))
ON CONFLICT (hash) DO UPDATE
SET entry_id = excluded.entry_id, validated_at = excluded.validated_at,
    fresh_until = excluded.fresh_until,
    initial_age = excluded.initial_age, cache_control = excluded.cache_control, vary = excluded.vary
WHERE NOT $8::boolean OR k.validated_at < excluded.validated_at
RETURNING k.hash
