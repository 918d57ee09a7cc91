-- Ends the edge's session for good: what that session still says changes nothing.
UPDATE edges SET epoch = epoch + 1, state = 'lost' WHERE name = $1 RETURNING id
