-- Points the key to an entry and tells where it pointed before (null: nowhere). A replayed
-- observation ($11) is old news: it does not win over a later validation, nor over an invalidation.
-- Another one ends that.
WITH before AS (
    SELECT entry_id FROM cache_keys WHERE source = $1 AND path = $2 AND query = $3 AND variant = $4
), confirmed AS (
    UPDATE cache_entries SET invalidated_at = NULL WHERE id = $5 AND invalidated_at IS NOT NULL AND NOT $11::boolean
)
INSERT INTO cache_keys AS k
    (source, path, query, variant, entry_id, validated_at, fresh_until, initial_age, cache_control, vary)
SELECT $1, $2, $3, $4, $5::uuid, $6::timestamptz, $7::timestamptz, $8::integer, $9, $10::text[]
WHERE NOT $11::boolean OR NOT EXISTS (SELECT 1 FROM cache_entries WHERE id = $5 AND invalidated_at IS NOT NULL)
ON CONFLICT (source, path, query, variant) DO UPDATE
SET entry_id = excluded.entry_id, validated_at = excluded.validated_at, fresh_until = excluded.fresh_until,
    initial_age = excluded.initial_age, cache_control = excluded.cache_control, vary = excluded.vary
WHERE NOT $11::boolean OR k.validated_at < excluded.validated_at
RETURNING (SELECT entry_id FROM before) AS previous
