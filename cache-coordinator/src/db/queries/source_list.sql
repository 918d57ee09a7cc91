SELECT name, base_url, settings, revision FROM sources ORDER BY name
