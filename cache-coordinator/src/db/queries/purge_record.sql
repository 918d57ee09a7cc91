-- Edges remember the number of the last purge that they carried out, and are sent the later
-- ones. A database that was restored, or made anew, has forgotten purges and counts them again from
-- a lower number, so a number is a time, which exceeds all that were ever given.
INSERT INTO cache_purges (number, source, kind, value, soft, is_done, keys_before, first_path,
    last_path, pattern, tag)
OVERRIDING SYSTEM VALUE
VALUES (
    greatest((extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
        (SELECT max(number) + 1 FROM cache_purges)),
    $1, $2, $3, $4, false, $5, $6, $7, $8, $9)
RETURNING number, purged_at
