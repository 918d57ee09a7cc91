-- Returns the name if the state changed. Epoch 0: any session.
UPDATE edges SET state = $3
WHERE id = $1 AND (epoch = $2 OR $2 = 0) AND state <> $3
RETURNING name
