SELECT coalesce(max(revision), 0) AS latest FROM cache_changes
