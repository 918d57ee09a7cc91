-- Where keys point now.
SELECT hash, entry_id FROM cache_keys WHERE hash = ANY($1)
