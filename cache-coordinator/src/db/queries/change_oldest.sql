SELECT min(revision) AS oldest FROM cache_changes
