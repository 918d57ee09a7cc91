-- All that are kept: some thousand.
SELECT number, source, kind, value, soft FROM cache_purges ORDER BY number
