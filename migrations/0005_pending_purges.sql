-- A purge of very many objects answers before their rows are gone: until it is carried out, it hides the keys it selects.

ALTER TABLE cache_purges
    ADD COLUMN is_done boolean NOT NULL DEFAULT true,
    ADD COLUMN keys_before timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN first_path text COLLATE "C" NOT NULL DEFAULT '',
    ADD COLUMN last_path text COLLATE "C" NOT NULL DEFAULT '',
    ADD COLUMN pattern text,
    ADD COLUMN tag text;
COMMENT ON COLUMN cache_purges.is_done IS 'The rows of what it selects are gone.';
COMMENT ON COLUMN cache_purges.keys_before IS 'It is of keys validated before, by the clock that validations are written with: the coordinator''s.';
COMMENT ON COLUMN cache_purges.pattern IS 'Of path and query, for LIKE; null: any.';
CREATE INDEX cache_purges_pending ON cache_purges (number) WHERE NOT is_done;

-- Whether a purge that is not carried out yet selects a key.
CREATE FUNCTION is_purged(entry cache_entries, validated timestamptz) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT 1 FROM cache_purges p
        WHERE NOT p.is_done AND validated < p.keys_before
          AND (p.source = entry.source OR (p.source = '' AND p.tag IS NOT NULL))
          AND CASE WHEN p.tag IS NOT NULL THEN entry.tags @> ARRAY[p.tag]
              ELSE entry.path BETWEEN p.first_path AND p.last_path
                   AND (p.pattern IS NULL
                        OR (entry.path || CASE WHEN entry.query = '' THEN '' ELSE '?' || entry.query END) LIKE p.pattern)
              END
    )
$$;
