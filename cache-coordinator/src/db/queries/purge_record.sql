INSERT INTO cache_purges (source, kind, value, soft) VALUES ($1, $2, $3, $4) RETURNING number, purged_at
