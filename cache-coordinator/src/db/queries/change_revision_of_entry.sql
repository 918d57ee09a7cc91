-- The newest change of one entry that the log still has; from the index alone.
SELECT max(revision) AS latest FROM cache_changes WHERE entry_id = $1
