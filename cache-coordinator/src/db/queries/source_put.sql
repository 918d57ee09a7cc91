-- If the base URL changes, the source has no keys there yet: its old entries remain, and are found
-- by their id alone.
WITH moved AS (
    DELETE FROM cache_keys k USING sources s, cache_entries e
    WHERE s.name = $1 AND s.base_url <> $2 AND e.source = s.name AND k.entry_id = e.id
)
INSERT INTO sources (name, base_url, settings, revision)
VALUES ($1, $2, $3, $4)
ON CONFLICT (name) DO UPDATE
SET base_url = excluded.base_url, settings = excluded.settings, revision = excluded.revision,
    updated_at = now()
