-- An edge that was away when an entry was invalidated learns of it when it comes back, and what it had observed before does
-- not bind a key to the entry again.

ALTER TABLE cache_entries ADD COLUMN invalidated_at timestamptz;
COMMENT ON COLUMN cache_entries.invalidated_at IS 'Since then no key may point here on old news; null again once its origin is seen to have this version.';
COMMENT ON COLUMN cache_entries.validator IS 'In clear: the strong ETag with its quotes, else Last-Modified/size, with a weak ETag behind it if there is one.';
CREATE INDEX cache_entries_invalidated ON cache_entries (invalidated_at) WHERE invalidated_at IS NOT NULL;
