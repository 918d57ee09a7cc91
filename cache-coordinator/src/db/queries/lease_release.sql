UPDATE coordinator_lease SET expires_at = '-infinity' WHERE holder = $1 AND term = $2
