-- Points the key to an entry and tells where it pointed before (null: nowhere). A replayed
-- observation ($11) is old news: it does not win over a later validation.
WITH before AS (
    SELECT entry_id FROM cache_keys WHERE source = $1 AND path = $2 AND query = $3 AND variant = $4
)
INSERT INTO cache_keys AS k
    (source, path, query, variant, entry_id, validated_at, fresh_until, initial_age, cache_control, vary)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT (source, path, query, variant) DO UPDATE
SET entry_id = excluded.entry_id, validated_at = excluded.validated_at, fresh_until = excluded.fresh_until,
    initial_age = excluded.initial_age, cache_control = excluded.cache_control, vary = excluded.vary
WHERE NOT $11::boolean OR k.validated_at < excluded.validated_at
RETURNING (SELECT entry_id FROM before) AS previous
