DELETE FROM cache_purges WHERE number <= $1
