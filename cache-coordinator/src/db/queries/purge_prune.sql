DELETE FROM cache_purges WHERE number <= $1 AND is_done
