INSERT INTO sources (name, base_url, settings, revision)
VALUES ($1, $2, $3, $4)
ON CONFLICT (name) DO UPDATE
SET base_url = excluded.base_url, settings = excluded.settings, revision = excluded.revision, updated_at = now()
