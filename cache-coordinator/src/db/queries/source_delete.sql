-- Keys, entries and jobs go by cascade; chunk rows have gone before.
DELETE FROM sources WHERE name = $1
