-- Starts and ends come as array literals, because arrays of different lengths cannot form one
-- array.
INSERT INTO cache_changes (revision, entry_id, edge, kind, starts, ends, subject)
SELECT t.revision, t.entry_id, t.edge, t.kind, t.starts::bigint[], t.ends::bigint[], t.subject
FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
    AS t (revision, entry_id, edge, kind, starts, ends, subject)
