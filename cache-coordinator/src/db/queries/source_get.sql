SELECT name, base_url, settings, revision FROM sources WHERE name = $1
