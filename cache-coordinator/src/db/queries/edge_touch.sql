UPDATE edges e
SET last_seen = now(), bytes_used = t.bytes_used, bytes_allowed = t.bytes_allowed
FROM unnest($1::integer[], $2::bigint[], $3::bigint[], $4::bigint[])
    AS t (id, epoch, bytes_used, bytes_allowed)
WHERE e.id = t.id AND e.epoch = t.epoch
RETURNING e.id, e.epoch
