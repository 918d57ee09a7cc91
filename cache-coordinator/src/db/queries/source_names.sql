SELECT name FROM sources WHERE name = ANY($1)
