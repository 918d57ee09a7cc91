SELECT id, epoch FROM edges WHERE id = ANY($1::integer[])
