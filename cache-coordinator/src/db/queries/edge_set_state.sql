-- Returns the name where the state changed. Epoch 0: whatever session it has.
UPDATE edges SET state = $3
WHERE id = $1 AND (epoch = $2 OR $2 = 0) AND state <> $3
RETURNING name
