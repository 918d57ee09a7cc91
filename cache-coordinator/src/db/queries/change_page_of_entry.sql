SELECT revision, entry_id, edge, kind, starts, ends, subject
FROM cache_changes
WHERE entry_id = $4 AND revision > $1 AND revision <= $2
ORDER BY revision
LIMIT $3
