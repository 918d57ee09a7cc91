-- Purges whose rows are not deleted yet, along cache_purges_pending.
SELECT number, source, kind, value, soft, purged_at, keys_before
FROM cache_purges WHERE NOT is_done ORDER BY number
