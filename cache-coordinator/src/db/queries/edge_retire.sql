-- Ends the edge's session for good: its later messages change nothing.
UPDATE edges SET epoch = epoch + 1, state = 'lost' WHERE name = $1 RETURNING id
