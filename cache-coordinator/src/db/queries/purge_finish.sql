UPDATE cache_purges SET is_done = true WHERE number = $1
