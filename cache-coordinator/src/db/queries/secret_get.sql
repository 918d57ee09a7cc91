SELECT value FROM cluster_secrets WHERE name = $1
