-- All purges that are kept: about a thousand.
SELECT number, source, kind, value, soft FROM cache_purges ORDER BY number
