DELETE FROM edges WHERE name = $1
