-- What clients choose is bounded: keys are indexed by a hash, so that no path is too long for an index row, and entries that
-- hold nothing are found by age, to be forgotten.

-- A key says what its entry says: source, path, query and variant are there alone.
ALTER TABLE cache_keys ADD COLUMN hash uuid;
UPDATE cache_keys SET hash = encode(substr(sha256(
    convert_to(source, 'UTF8') || '\x00'::bytea || convert_to(path, 'UTF8') || '\x00'::bytea
    || convert_to(query, 'UTF8') || '\x00'::bytea || convert_to(variant, 'UTF8')), 1, 16), 'hex')::uuid;
ALTER TABLE cache_keys DROP CONSTRAINT cache_keys_pkey;
ALTER TABLE cache_keys
    ALTER COLUMN hash SET NOT NULL,
    ADD PRIMARY KEY (hash),
    DROP COLUMN source,
    DROP COLUMN path,
    DROP COLUMN query,
    DROP COLUMN variant;
COMMENT ON TABLE cache_keys IS 'What a client names (source, path, query, variant: those of the entry) and the entry it points to now.';
COMMENT ON COLUMN cache_keys.hash IS 'First 128 bits of SHA-256 over source, path, query and variant, with a zero byte between them.';

-- In the order of bytes: a prefix is a range of the index.
ALTER TABLE cache_entries
    ALTER COLUMN path TYPE text COLLATE "C",
    ALTER COLUMN query TYPE text COLLATE "C",
    ADD COLUMN chunkless_since timestamptz DEFAULT now();
UPDATE cache_entries e SET chunkless_since = NULL WHERE EXISTS (SELECT 1 FROM cache_chunks c WHERE c.entry_id = e.id);
COMMENT ON COLUMN cache_entries.chunkless_since IS 'When an entry of which no edge holds a chunk was last heard of; null where one does. Kept by the writer, with the rows.';
CREATE INDEX cache_entries_chunkless ON cache_entries (chunkless_since) WHERE chunkless_since IS NOT NULL;
-- Of the cascade from cache_entries, and of whether an entry has a job.
CREATE INDEX precache_jobs_by_entry ON precache_jobs (entry_id);
