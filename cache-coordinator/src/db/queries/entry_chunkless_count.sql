SELECT count(*) AS chunkless FROM cache_entries WHERE chunkless_since IS NOT NULL
