-- Keys, entries and jobs are deleted by cascade; chunk rows were deleted before.
DELETE FROM sources WHERE name = $1
