-- The present entries of keys.
SELECT k.hash, k.entry_id FROM unnest($1::uuid[]) AS t (hash) JOIN cache_keys k ON k.hash = t.hash
