-- Purges by tag, prefix and glob: tags stand with the entry, and an edge that was away carries out what it missed.

ALTER TABLE cache_entries ADD COLUMN tags text[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN cache_entries.tags IS 'Of Surrogate-Key, Cache-Tag and Cache-Groups (RFC 9875) in the origin''s last answer; bounded.';
-- Entries by tag; those without one have no place in it.
CREATE INDEX cache_entries_by_tag ON cache_entries USING gin (tags) WHERE tags <> '{}';

CREATE TABLE cache_purges (
    number          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source          text NOT NULL,
    kind            text NOT NULL CHECK (kind IN ('key', 'prefix', 'glob', 'tag', 'all')),
    value           text NOT NULL,
    soft            boolean NOT NULL,
    purged_at       timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE cache_purges IS 'The latest purges. An edge tells the number of its last one when it comes, and is told of the later ones.';
