-- Keys, entries and jobs go by cascade; chunk rows were deleted before.
DELETE FROM sources WHERE name = $1
