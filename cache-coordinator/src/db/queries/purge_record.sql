INSERT INTO cache_purges (source, kind, value, soft, is_done, keys_before, first_path, last_path,
    pattern, tag)
VALUES ($1, $2, $3, $4, false, $5, $6, $7, $8, $9)
RETURNING number, purged_at
