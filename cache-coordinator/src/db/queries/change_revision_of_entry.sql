-- The newest change of one entry that is still in the log; from the index alone.
SELECT max(revision) AS latest FROM cache_changes WHERE entry_id = $1
